//! Very many models in one configuration: the loop goes through what is loaded and waited for, not through them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::fake::{Faults, Order, World};
use super::{Answer, Host, paused};
use crate::config::{Config, ModelConfig};
use crate::domain::{FailureKind, Kind, ModelId, ModelState};

/// More than a models.yaml of the largest size has in practice.
const MODELS: usize = 75_000;
/// Processor time that the loop and everything else on its thread may take for one command, in ticks of 10 ms. Going through
/// so many models takes ten times as many.
const TICKS_MAX: u64 = 5;
const ONE: &str = "devices: [{id: cpu, memory: 450MiB}]\nmodels:\n  a: {type: text, plugin: fake}\n";

/// Processor time of this thread so far, in ticks of 10 ms.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    // The name, in brackets, may hold anything; user and system time are the 14th and 15th field.
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// What it comes to, with the ticks that it took here.
async fn timed<T>(what: &str, work: impl Future<Output = T>) -> T {
    let begun = ticks();
    let done = work.await;
    let took = ticks() - begun;
    eprintln!("{what}: {} ms", took * 10);
    assert!(took <= TICKS_MAX, "{what} took {took} ticks of the loop's thread");
    done
}

/// The configuration with so many more models like its first.
fn with_more(config: &Config, count: usize, change: impl Fn(&mut ModelConfig)) -> Arc<Config> {
    let mut first = config.models.values().next().unwrap().clone();
    change(&mut first);
    let more = (0..count).map(|n| {
        let id = ModelId::new(format!("m{n}")).unwrap();
        (id.clone(), ModelConfig { id, ..first.clone() })
    });
    let models: BTreeMap<ModelId, ModelConfig> = config.models.clone().into_iter().chain(more).collect();
    Arc::new(Config { models, ..config.clone() })
}

#[test]
fn the_loop_goes_through_no_list_of_models() {
    paused(async {
        let host = Host::start(World::new(Faults::Never, Order::ExitFirst, 1 << 40), 1, ONE);
        let handle = host.handle();
        let small = handle.config();
        let plain = with_more(&small, MODELS, |_| {});
        let other = with_more(&small, MODELS, |model| model.options = serde_json::json!({"other": 1}));
        let one_more = with_more(&small, MODELS + 1, |_| {});
        assert_eq!(host.ask("a").await.unwrap().answer, Answer::Whole);
        for (what, config, numbers) in [
            ("all are new", &plain, [MODELS, 0, 0]),
            ("one is new", &one_more, [1, 0, 0]),
            ("one is gone", &plain, [0, 1, 0]),
            ("all are made of something else", &other, [0, 0, MODELS]),
            ("all are as they were", &other, [0, 0, 0]),
            ("all are gone", &small, [0, MODELS, 0]),
            ("all are new again", &plain, [MODELS, 0, 0]),
        ] {
            let changes = timed(what, handle.configure(Arc::clone(config))).await.unwrap();
            assert_eq!([changes.added.len(), changes.removed.len(), changes.changed.len()], numbers, "{what}");
            assert!(Arc::ptr_eq(&handle.config(), config));
            assert_eq!(host.ask("a").await.unwrap().answer, Answer::Whole, "{what}");
        }
        assert_eq!(host.world.loads(), 1, "what did not change stays");
        assert_eq!(timed("a request", host.ask("m7")).await.unwrap().answer, Answer::Whole);
        let models = timed("every status", handle.models()).await.unwrap();
        let hot = models.iter().filter(|model| model.state == ModelState::Hot).map(|model| model.id.as_str());
        assert_eq!((models.len(), hot.collect::<Vec<_>>()), (MODELS + 1, vec!["a", "m7"]));
        assert!(models.is_sorted_by_key(|model| &model.id));
        let text = timed("every metric", handle.metrics()).await.unwrap().render(Default::default()).unwrap();
        assert!(text.contains("aihost_queue_length{model=\"m8\"} 0\n"), "{}", &text[..2000]);
        timed("a dry run", handle.explain("m9".into())).await.unwrap();
    });
}

#[test]
fn a_configuration_that_is_read_by_nobody_any_more_is_taken_apart() {
    paused(async {
        let host = Host::start(World::new(Faults::Never, Order::ExitFirst, 1 << 40), 1, ONE);
        let handle = host.handle();
        let first = handle.config();
        let (other, seen) = (with_more(&first, 1, |_| {}), Arc::downgrade(&first));
        handle.configure(other).await.unwrap();
        sleep(Duration::from_secs(10)).await;
        assert_eq!(seen.strong_count(), 2, "this reader, and who will take it apart");
        drop(first);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(seen.strong_count(), 0);
    });
}

#[test]
fn who_waits_is_not_given_to_a_model_of_another_kind() {
    paused(async {
        let host = Host::start(World::new(Faults::Never, Order::ExitFirst, 1 << 40), 1, ONE);
        let handle = host.handle();
        let mut config = Config::clone(&handle.config());
        config.models.values_mut().for_each(|model| model.kind = Kind::Audio);
        let waiting = host.ask("a");
        while handle.models().await.unwrap()[0].state != ModelState::Loading {
            sleep(Duration::from_millis(1)).await;
        }
        handle.configure(Arc::new(config)).await.unwrap();
        let Answer::Refused(failure) = waiting.await.unwrap().answer else { panic!("it was served") };
        assert_eq!(failure.kind, FailureKind::WrongKind);
        assert!(failure.message.contains("serves audio by now"), "{failure}");
    });
}

#[test]
fn configurations_come_in_force_one_after_the_other() {
    paused(async {
        let host = Host::start(World::new(Faults::Never, Order::ExitFirst, 1 << 40), 1, ONE);
        let handle = host.handle();
        let first = handle.config();
        let configs: Vec<Arc<Config>> = (1..20).map(|count| with_more(&first, count, |_| {})).collect();
        let asked: Vec<_> = configs
            .iter()
            .map(|config| {
                let (handle, config) = (host.handle(), Arc::clone(config));
                tokio::spawn(async move { handle.configure(config).await })
            })
            .collect();
        for changes in asked {
            let changes = changes.await.unwrap().unwrap();
            assert_eq!((changes.added.len(), changes.removed.len()), (1, 0), "each is compared with the one before");
        }
        assert!(Arc::ptr_eq(&handle.config(), &configs[18]));
    });
}

#[test]
fn many_models_to_preload_are_loaded_a_few_at_a_time() {
    paused(async {
        let host = Host::start(World::new(Faults::Never, Order::ExitFirst, 1 << 40), 1, ONE);
        let handle = host.handle();
        let first = handle.config();
        handle.configure(with_more(&first, 300, |model| model.preload = true)).await.unwrap();
        let mut most = 0;
        while host.world.loads() < 300 {
            let models = handle.models().await.unwrap();
            most = most.max(models.iter().filter(|model| model.queued > 0).count());
            sleep(Duration::from_millis(10)).await;
        }
        assert!((2..=8).contains(&most), "{most} at once");
    });
}
