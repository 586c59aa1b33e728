//! Between the safe traits and the ABI: JSON in and out, and a panic guard round every entry, Drop included.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use abi_stable::sabi_trait::TD_Opaque;
use abi_stable::std_types::{RArc, ROption, RResult, RSlice, RStr, RVec};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::context::{Context, LoadContext, PrepareContext};
use super::job::{self, Job};
use super::logging;
use super::plugin::{Engine, Plugin, Task, Upstream};
use super::{Error, ErrorKind, Result};
use crate::abi::{
    RawContextArc, RawError, RawExtension, RawExtension_TO, RawExtensionArc, RawHostArc, RawModel, RawModel_TO,
    RawModelBox, RawRequest, RawSinkArc, extension_id,
};
use crate::task::{Description, LoadRequest, PrepareRequest};

/// The root module's `describe`.
pub fn describe<P: Plugin>() -> RVec<u8> {
    let description = catch_unwind(|| Description { options_schema: schemars::schema_for!(P::Options).to_value() });
    serde_json::to_vec(&description.unwrap_or_default()).unwrap_or_default().into()
}

/// The root module's `instantiate`.
pub fn instantiate<P: Plugin>(host: RawHostArc, options: RSlice<'_, u8>) -> RResult<RawModelBox, RawError> {
    let host = logging::connect(host);
    guard(|| {
        let _scope = logging::enter(&host, 0);
        let options: P::Options = serde_json::from_slice(options.as_slice())
            .map_err(|e| Error::new(ErrorKind::InvalidOptions, format!("options: {e}")))?;
        let glue = Glue {
            plugin: Arc::new(Mutex::new(Some(P::new(options)?))),
            engine: Arc::default(),
            poisoned: AtomicBool::new(false),
            host: Arc::clone(&host),
        };
        Ok(RawModel_TO::from_value(glue, TD_Opaque))
    })
}

/// Where the engine is while the model is loaded.
type EngineSlot<P> = Arc<RwLock<Option<Arc<<P as Plugin>::Engine>>>>;

/// Where the plugin is until the instance is dropped.
type PluginSlot<P> = Arc<Mutex<Option<P>>>;

struct Glue<P: Plugin> {
    plugin: PluginSlot<P>,
    engine: EngineSlot<P>,
    poisoned: AtomicBool,
    host: Arc<RawHostArc>,
}

impl<P: Plugin> Glue<P> {
    /// Every entry goes through here: refused after a panic, and a panic becomes an error.
    fn enter<T>(&self, body: impl FnOnce() -> Result<T>) -> RResult<T, RawError> {
        if self.poisoned.load(Ordering::Acquire) {
            return RResult::RErr(
                Error::new(ErrorKind::Panicked, "the plugin panicked before and is no longer used").into(),
            );
        }
        let result = guard(|| {
            let _scope = logging::enter(&self.host, 0);
            body()
        });
        if let RResult::RErr(error) = &result
            && error.kind.0 == ErrorKind::Panicked.code()
        {
            self.poisoned.store(true, Ordering::Release);
        }
        result
    }

    fn with_plugin<T>(&self, body: impl FnOnce(&P) -> Result<T>) -> Result<T> {
        with_plugin(&self.plugin, body)
    }

    fn engine(&self) -> Result<Arc<P::Engine>> {
        let engine = self.engine.read().unwrap_or_else(PoisonError::into_inner);
        engine.clone().ok_or_else(|| Error::internal("the model is not loaded"))
    }

    fn asking(&self, ask: AskEngine<P>) -> RawExtensionArc {
        let asking = Asking::<P> { engine: Arc::clone(&self.engine), host: Arc::clone(&self.host), ask };
        RawExtension_TO::from_ptr(RArc::new(asking), TD_Opaque)
    }

    fn replace(&self, engine: Option<P::Engine>) {
        let old =
            std::mem::replace(&mut *self.engine.write().unwrap_or_else(PoisonError::into_inner), engine.map(Arc::new));
        drop(old);
    }
}

impl<P: Plugin> RawModel for Glue<P> {
    fn plan(&self, load: RSlice<'_, u8>) -> RResult<RVec<u8>, RawError> {
        self.enter(|| encode(&self.with_plugin(|plugin| plugin.plan(&decode::<LoadRequest>(load)?))?))
    }

    fn load(&self, load: RSlice<'_, u8>, ctx: RawContextArc) -> RResult<(), RawError> {
        self.enter(|| {
            let ctx = LoadContext(Context::new(ctx));
            let engine = self.with_plugin(|plugin| plugin.load(&decode::<LoadRequest>(load)?, &ctx))?;
            self.replace(Some(engine));
            Ok(())
        })
    }

    fn warmup(&self, ctx: RawContextArc) -> RResult<(), RawError> {
        self.enter(|| self.engine()?.warmup(&LoadContext(Context::new(ctx))))
    }

    fn cost(&self, request: RawRequest) -> RResult<u64, RawError> {
        self.enter(|| self.engine()?.cost(&job::decode(request)?))
    }

    fn submit(&self, request: RawRequest, sink: RawSinkArc, ctx: RawContextArc) -> RResult<(), RawError> {
        self.enter(|| {
            let _scope = logging::enter(&self.host, ctx.request_id());
            let engine = self.engine()?;
            let job = Job::<<P::Engine as Engine>::Task>::new(request, sink, ctx)?;
            match <P::Engine as Engine>::Task::tokenized(&job.request) {
                None => engine.submit(job),
                Some(input) => {
                    let tokens = engine.tokens(input);
                    job.reply.tell(tokens);
                }
            }
            Ok(())
        })
    }

    fn usage(&self) -> RResult<RVec<u8>, RawError> {
        self.enter(|| encode(&self.engine()?.usage()))
    }

    fn park(&self) -> RResult<(), RawError> {
        self.enter(|| self.engine()?.park())
    }

    fn unpark(&self, ctx: RawContextArc) -> RResult<(), RawError> {
        self.enter(|| self.engine()?.unpark(&LoadContext(Context::new(ctx))))
    }

    fn health(&self) -> RResult<(), RawError> {
        self.enter(|| self.engine()?.health())
    }

    fn extension(&self, id: RStr<'_>) -> ROption<RawExtensionArc> {
        match id.as_str() {
            extension_id::METRICS => {
                ROption::RSome(self.asking(|engine| encode(&engine.map(|engine| engine.metrics()).unwrap_or_default())))
            }
            extension_id::UPSTREAM if <<P::Engine as Engine>::Task as Task>::KIND == Upstream::KIND => {
                ROption::RSome(self.asking(|engine| {
                    encode(&engine.ok_or_else(|| Error::internal("the model is not loaded"))?.upstream()?)
                }))
            }
            extension_id::PREPARE => {
                let preparing = Preparing::<P> { plugin: Arc::clone(&self.plugin), host: Arc::clone(&self.host) };
                ROption::RSome(RawExtension_TO::from_ptr(RArc::new(preparing), TD_Opaque))
            }
            _ => ROption::RNone,
        }
    }

    fn release(&self) -> RResult<(), RawError> {
        self.enter(|| {
            self.replace(None);
            Ok(())
        })
    }
}

/// An extension that asks the engine, if there is one.
struct Asking<P: Plugin> {
    engine: EngineSlot<P>,
    host: Arc<RawHostArc>,
    ask: AskEngine<P>,
}

type AskEngine<P> = fn(Option<Arc<<P as Plugin>::Engine>>) -> Result<RVec<u8>>;

impl<P: Plugin> RawExtension for Asking<P> {
    fn call(&self, _input: RSlice<'_, u8>) -> RResult<RVec<u8>, RawError> {
        guard(|| {
            let _scope = logging::enter(&self.host, 0);
            (self.ask)(self.engine.read().unwrap_or_else(PoisonError::into_inner).clone())
        })
    }
}

/// The extension that has the plugin prepare a model.
struct Preparing<P: Plugin> {
    plugin: PluginSlot<P>,
    host: Arc<RawHostArc>,
}

impl<P: Plugin> RawExtension for Preparing<P> {
    fn call(&self, input: RSlice<'_, u8>) -> RResult<RVec<u8>, RawError> {
        guard(|| {
            let _scope = logging::enter(&self.host, 0);
            let PrepareRequest { load, environment } = decode(input)?;
            with_plugin(&self.plugin, |plugin| plugin.prepare(&load, &PrepareContext { environment }))?;
            encode(&())
        })
    }
}

fn with_plugin<P: Plugin, T>(slot: &PluginSlot<P>, body: impl FnOnce(&P) -> Result<T>) -> Result<T> {
    let plugin = slot.lock().unwrap_or_else(PoisonError::into_inner);
    body(plugin.as_ref().ok_or_else(|| Error::internal("the instance was dropped"))?)
}

impl<P: Plugin> Drop for Glue<P> {
    fn drop(&mut self) {
        // A panic that left this function would abort the process: the objects' own Drop code is the author's.
        let dropped = guard(|| {
            self.replace(None);
            drop(self.plugin.lock().unwrap_or_else(PoisonError::into_inner).take());
            Ok(())
        });
        if let RResult::RErr(error) = dropped {
            tracing::error!("while dropping a model: {}", error.message);
        }
    }
}

/// Runs author code; a panic becomes [`ErrorKind::Panicked`].
pub fn guard<T>(body: impl FnOnce() -> Result<T>) -> RResult<T, RawError> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => RResult::ROk(value),
        Ok(Err(error)) => RResult::RErr(error.into()),
        Err(payload) => RResult::RErr(
            Error::new(ErrorKind::Panicked, format!("the plugin panicked: {}", panic_text(payload))).into(),
        ),
    }
}

/// A payload's own Drop may panic too, so it is forgotten behind a second guard.
fn panic_text(payload: Box<dyn Any + Send>) -> String {
    let text = payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let text = text.map(|text| logging::formatted(format_args!("{text}")));
    let _ = catch_unwind(AssertUnwindSafe(|| drop(payload)));
    text.unwrap_or_else(|| "no message".to_owned())
}

fn decode<T: DeserializeOwned>(json: RSlice<'_, u8>) -> Result<T> {
    serde_json::from_slice(json.as_slice())
        .map_err(|e| Error::internal(format!("the host sent what this plugin cannot read: {e}")))
}

fn encode<T: Serialize>(value: &T) -> Result<RVec<u8>> {
    serde_json::to_vec(value).map(RVec::from).map_err(Error::internal)
}
