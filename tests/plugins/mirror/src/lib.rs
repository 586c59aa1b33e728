//! Fixture plugin `aihost/mirror`, of kind `custom`: says what it was asked, and does what the path says: `/echo`, `/count`,
//! `/refuse`, `/break`, `/die`, `/sicken`. It counts what it answers.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aihost_plugin_api::{
    Context, Custom, CustomHead, CustomOutput, CustomRequest, Engine, Error, LoadContext, LoadRequest, MemoryPlan,
    Metric, Plugin, Result,
};
use serde_json::json;

/// It has none.
#[derive(Debug, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {}

/// The plugin, and its engine.
#[derive(Debug, Default)]
pub struct Mirror {
    answered: Mutex<BTreeMap<String, u64>>,
    is_sick: AtomicBool,
}

impl Plugin for Mirror {
    type Options = Options;
    type Engine = Self;

    fn new(Options {}: Options) -> Result<Self> {
        Ok(Self::default())
    }

    fn plan(&self, _load: &LoadRequest) -> Result<MemoryPlan> {
        Ok(MemoryPlan::default())
    }

    fn load(&self, _load: &LoadRequest, _ctx: &LoadContext) -> Result<Self> {
        Ok(Self::default())
    }
}

impl Engine for Mirror {
    type Task = Custom;

    fn generate(&self, request: CustomRequest, out: &CustomOutput, ctx: &Context) -> Result<()> {
        if let Ok(mut answered) = self.answered.lock() {
            *answered.entry(request.path.clone()).or_default() += 1;
        }
        match request.path.as_str() {
            "/echo" => {
                let media = request.headers.get("content-type").map_or("application/octet-stream", String::as_str);
                out.begin(&CustomHead::new(200, media).header("x-bytes", &request.body().len().to_string()))?;
                out.write(request.body())
            }
            "/count" => {
                out.begin(&CustomHead::new(200, "text/event-stream"))?;
                for number in 0u64.. {
                    ctx.check()?;
                    out.write(format!("data: {number}\n\n").as_bytes())?;
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok(())
            }
            "/refuse" => Err(Error::invalid_request("the mirror shows no such thing").at("shape")),
            "/break" => Err(Error::internal("the mirror is broken")),
            "/sicken" => {
                self.is_sick.store(true, Ordering::Release);
                Err(Error::internal("the mirror is cracked"))
            }
            "/die" => std::process::abort(),
            _ => out.json(&json!({
                "method": request.method,
                "path": request.path,
                "query": request.query,
                "headers": request.headers,
                "bytes": request.body().len(),
                "pid": std::process::id(),
            })),
        }
    }

    fn health(&self) -> Result<()> {
        if self.is_sick.load(Ordering::Acquire) {
            Err(Error::internal("the mirror cannot be looked at"))
        } else {
            Ok(())
        }
    }

    fn metrics(&self) -> Vec<Metric> {
        let answered = self.answered.lock().map(|answered| answered.clone()).unwrap_or_default();
        let series = answered.into_iter().map(|(path, count)| {
            Metric::counter("answers", "What was asked of the mirror.", count as f64).label("path", &path)
        });
        series.chain([Metric::gauge("Not a name", "", 1.0)]).collect()
    }
}

aihost_plugin_api::export_plugin! { plugin: Mirror, id: "aihost/mirror", devices: ["cpu"], max_concurrency: 4 }
