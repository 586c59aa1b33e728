//! What was typed of servers of others: shapes that one key may have.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::raw::{OneOrMany, Text};

/// How an engine is asked whether it still has something to do.
#[derive(Debug, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Busy")]
pub(super) struct BusyKeys {
    /// Path and query of an answer of JSON, from `/` on. `{id}` in it stands for the `id` that the engine answered with.
    #[serde(default)]
    pub(super) path: Option<Text>,
    /// The members of that answer that say so, `a.b` for `b` in `a`: any that is a number above 0, true, or not empty.
    #[serde(default)]
    pub(super) json: Option<OneOrMany<Text>>,
    /// The texts of those members that mean so, instead.
    #[serde(default)]
    pub(super) values: Option<OneOrMany<Text>>,
}

/// The name of an engine that is known, or a mapping.
#[derive(Debug)]
pub(super) enum RawBusy {
    Known(Text),
    Keys(BusyKeys),
}

/// All of an engine's paths or none, or those that begin in a certain way.
#[derive(Debug)]
pub(super) enum RawRoutes {
    All(bool),
    These(Vec<Text>),
}

impl<'de> Deserialize<'de> for RawBusy {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Busy;
        impl<'de> Visitor<'de> for Busy {
            type Value = RawBusy;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of an engine, or a mapping with `path` and `json`")
            }
            fn visit_str<E: Error>(self, name: &str) -> Result<RawBusy, E> {
                Ok(RawBusy::Known(Text(name.to_owned())))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawBusy, A::Error> {
                BusyKeys::deserialize(MapAccessDeserializer::new(map)).map(RawBusy::Keys)
            }
        }
        deserializer.deserialize_any(Busy)
    }
}

impl<'de> Deserialize<'de> for RawRoutes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Routes;
        impl<'de> Visitor<'de> for Routes {
            type Value = RawRoutes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`true`, `false`, or a list of paths")
            }
            fn visit_bool<E: Error>(self, all: bool) -> Result<RawRoutes, E> {
                Ok(RawRoutes::All(all))
            }
            fn visit_str<E: Error>(self, path: &str) -> Result<RawRoutes, E> {
                Ok(RawRoutes::These(vec![Text(path.to_owned())]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawRoutes, A::Error> {
                let mut paths = Vec::new();
                while let Some(path) = seq.next_element()? {
                    paths.push(path);
                }
                Ok(RawRoutes::These(paths))
            }
        }
        deserializer.deserialize_any(Routes)
    }
}

impl JsonSchema for RawBusy {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "BusyProbe".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "string" }, generator.subschema_for::<BusyKeys>()] })
    }
}

impl JsonSchema for RawRoutes {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Routes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [{ "type": "boolean" }, { "type": "array", "items": { "type": "string" } }] })
    }
}
