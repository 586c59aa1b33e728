//! A plugin without options, plan and load, for engines that are the whole of a test.

use std::marker::PhantomData;

use aihost_plugin_api::testing::MockHost;
use aihost_plugin_api::{Engine, LoadContext, LoadRequest, MemoryPlan, Plugin, Result};

/// It takes none.
#[derive(serde::Deserialize, schemars::JsonSchema)]
pub(crate) struct Options {}

/// The plugin of an engine that is made from nothing.
pub(crate) struct Bare<E>(PhantomData<fn() -> E>);

impl<E: Engine + Default> Plugin for Bare<E> {
    type Options = Options;
    type Engine = E;

    fn new(_: Options) -> Result<Self> {
        Ok(Self(PhantomData))
    }

    fn plan(&self, _: &LoadRequest) -> Result<MemoryPlan> {
        Ok(MemoryPlan::default())
    }

    fn load(&self, _: &LoadRequest, _: &LoadContext) -> Result<E> {
        Ok(E::default())
    }
}

/// A host with this engine loaded.
pub(crate) fn loaded<E: Engine + Default>() -> MockHost {
    let mut host = MockHost::new::<Bare<E>>(serde_json::json!({}), &[]).unwrap();
    host.load().unwrap();
    host
}
