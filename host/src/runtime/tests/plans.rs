//! What plugins plan beyond the one device: other devices are refused, and pinned host memory is counted.

use std::time::Duration;

use aihost_plugin_api::MemoryPlan;
use tokio::time::sleep;

use super::fake::{Faults, NEED, Order, World};
use super::{Answer, Host, paused};
use crate::domain::{Device, Failure, FailureKind};
use crate::runtime::AccessEntry;

const MIB: u64 = 1 << 20;
/// Beyond the first pause after a load that failed.
const COOLDOWN: Duration = Duration::from_secs(2);
const YAML: &str = "devices: [{id: cpu, memory: 250MiB}, {id: 'cuda:0', memory: 1GiB}]
models:
  card: {type: text, plugin: carded}
  other: {type: text, plugin: carded}
  host: {type: text, plugin: fake, devices: cpu}
";

/// `card` and `other` with these plans.
fn host(card: MemoryPlan, other: MemoryPlan) -> Host {
    let world = World::new(Faults::Never, Order::ExitFirst, 1 << 40);
    Host::start(world.with_plan("card", card).with_plan("other", other), 1, YAML)
}

async fn refused(host: &Host, model: &'static str) -> Failure {
    match host.ask(model).await.unwrap().answer {
        Answer::Refused(failure) => failure,
        answer => panic!("{model}: {answer:?}"),
    }
}

async fn serves(host: &Host, model: &'static str) {
    assert_eq!(host.ask(model).await.unwrap().answer, Answer::Whole, "{model}");
}

#[test]
fn a_plan_of_several_devices_is_refused_by_name() {
    paused(async {
        let on = |device: &str, bytes: u64| MemoryPlan::new(NEED).others([(device.to_owned(), bytes)].into());
        let host = host(on("cuda:1\u{1b}[31m", 5 << 30), on("cuda:0", MIB));
        let failure = refused(&host, "card").await;
        let told = &failure.message;
        assert_eq!(failure.kind, FailureKind::NotUsable);
        assert!(told.contains("needs 5.0 GiB on cuda:1") && told.contains("beside cuda:0"), "{told}");
        assert!(told.contains("one device; choose options") && !told.contains('\u{1b}'), "{told}");
        let told = refused(&host, "other").await.message;
        assert!(told.contains("its own device cuda:0") && told.contains("`required`"), "{told}");
        // Nothing is left of either, and others are served.
        sleep(Duration::from_secs(1)).await;
        assert_eq!((host.world.alive(), host.world.loads()), (Vec::new(), 0));
        serves(&host, "host").await;
    });
}

#[test]
fn a_device_of_which_nothing_is_planned_is_none() {
    paused(async {
        let none = MemoryPlan::new(NEED).others([("cuda:1".to_owned(), 0)].into());
        let host = host(none.clone(), none);
        serves(&host, "card").await;
    });
}

#[test]
fn pinned_memory_is_refused_beyond_what_the_host_has() {
    paused(async {
        let pinned = |mib: u64| MemoryPlan::new(NEED).pinned(mib * MIB);
        let host = host(pinned(251), pinned(151));
        let failure = refused(&host, "card").await;
        let told = &failure.message;
        assert_eq!(failure.kind, FailureKind::OutOfMemory);
        assert!(told.contains("needs 251.0 MiB of pinned host memory beside cuda:0"), "{told}");
        assert!(told.contains("250.0 MiB of 250.0 MiB can be had") && told.contains("give `cpu` more"), "{told}");
        let shown = failure.for_clients.as_deref().unwrap_or_default();
        assert!(!shown.is_empty() && !shown.contains("MiB"), "{shown}");
        assert_eq!(host.world.loads(), 0);

        // What others hold is not there for it, and is once they have left.
        serves(&host, "host").await;
        sleep(COOLDOWN).await;
        let failure = refused(&host, "other").await;
        assert!(failure.message.contains("and 150.0 MiB of 250.0 MiB"), "{failure}");
        host.handle().unload("host".into(), None, AccessEntry::default()).await.unwrap();
        sleep(COOLDOWN).await;
        serves(&host, "other").await;
    });
}

#[test]
fn pinned_memory_is_counted_where_it_is_held() {
    paused(async {
        let pinned = |mib: u64| MemoryPlan::new(NEED).pinned(mib * MIB);
        let host = host(pinned(200), pinned(100));
        serves(&host, "card").await;
        let devices = host.handle().devices().await.unwrap();
        let cpu = devices.iter().find(|status| status.device == Device::Cpu).unwrap();
        assert_eq!(cpu.reserved, 200 * MIB);
        let told = refused(&host, "other").await.message;
        assert!(told.contains("and 50.0 MiB of 250.0 MiB can be had"), "{told}");
        // 50 MiB are left for a model that needs 100.
        let told = refused(&host, "host").await.message;
        assert!(told.contains("50.0 MiB"), "{told}");

        host.handle().unload("card".into(), None, AccessEntry::default()).await.unwrap();
        sleep(COOLDOWN).await;
        serves(&host, "other").await;
        serves(&host, "host").await;
    });
}
