//! What is bounded, measured in paused time: who goes first, how long a request may run, how often a broken model is tried.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::AccessEntry;
use super::fake::{Faults, Order, World};
use super::{Answer, Class, Host, OutputMode, paused};
use crate::domain::{Failure, FailureKind};

const ONE: &str = "devices: [{id: cpu, memory: 150MiB}]\nmodels:\n  a: {type: text, plugin: fake}\n";

fn host(faults: Faults, leases_max: u32, yaml: &str) -> Host {
    Host::start(World::new(faults, Order::ExitFirst, 1 << 40), leases_max, yaml)
}

#[test]
fn who_waits_goes_before_who_does_not() {
    paused(async {
        let host = host(Faults::Never, 1, ONE);
        let batch = [(); 3].map(|()| host.ask_as("a", Class::Batch, OutputMode::Streamed));
        sleep(Duration::from_millis(1)).await;
        let interactive = [(); 3].map(|()| host.ask("a"));
        let mut granted = Vec::new();
        for task in interactive.into_iter().chain(batch) {
            let told = task.await.unwrap();
            assert_eq!(told.answer, Answer::Whole);
            granted.push(told.granted);
        }
        assert!(granted.is_sorted(), "{granted:?}");
    });
}

#[test]
fn a_request_that_never_ends_costs_its_own_time_and_no_more() {
    paused(async {
        let yaml = format!("limits: {{first_output_timeout: 1h}}\n{ONE}");
        let host = host(Faults::First("generate: it hangs"), 1, &yaml);
        let (begun, hung) = (Instant::now(), host.ask("a"));
        sleep(Duration::from_secs(590)).await;
        let next = host.ask("a");
        let told = hung.await.unwrap();
        assert!(matches!(told.answer, Answer::Refused(failure) if failure.kind == FailureKind::TimedOut));
        // `request_timeout`, and the second in which an answer must not go on.
        assert!((600..603).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        assert_eq!(next.await.unwrap().answer, Answer::Whole);
        // The hung one was cancelled, then its worker killed: a fresh one served the next.
        assert_eq!(host.world.loads(), 2);
    });
}

#[test]
fn a_request_that_shows_nothing_ends_long_before_it_has_run_for_too_long() {
    paused(async {
        let yaml = format!("limits: {{first_output_timeout: 20s}}\n{ONE}");
        let host = host(Faults::First("generate: it hangs"), 1, &yaml);
        let begun = Instant::now();
        let told = host.ask("a").await.unwrap();
        let limit = |failure: &Failure| failure.message.contains("first_output_timeout");
        assert!(matches!(told.answer, Answer::Refused(failure) if limit(&failure)));
        assert!((20..22).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
        assert_eq!(host.ask("a").await.unwrap().answer, Answer::Whole);
    });
}

#[test]
fn a_model_that_does_not_load_is_tried_ever_more_seldom() {
    paused(async {
        let host = host(Faults::Always("load: the plugin refuses"), 1, ONE);
        let (begun, mut tries) = (Instant::now(), Vec::new());
        while begun.elapsed() < Duration::from_secs(600) {
            let before = host.world.loads();
            let told = host.ask("a").await.unwrap();
            assert!(matches!(told.answer, Answer::Refused(failure) if failure.kind == FailureKind::NotUsable));
            if host.world.loads() > before {
                tries.push(begun.elapsed());
            }
            sleep(Duration::from_millis(100)).await;
        }
        let pauses: Vec<u64> = tries.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
        assert_eq!(pauses[..7], [1, 2, 4, 8, 16, 32, 60], "{pauses:?}");
        assert!(pauses[7..].iter().all(|pause| *pause == 60), "{pauses:?}");
    });
}

#[test]
fn a_quarantine_outlives_the_host_until_an_operator_or_another_entry_ends_it() {
    let state_dir = tempfile::tempdir().unwrap();
    let yaml = |options: &str| {
        let state = state_dir.path().display();
        format!(
            "state_dir: {state}\ndevices: [{{id: cpu, memory: 150MiB}}]\nmodels:\n  a: {{type: text, plugin: fake, preload: true, options: {options}}}\n"
        )
    };
    let crashing = yaml("{}");
    paused(async {
        let host = host(Faults::Always("load: it dies"), 1, &crashing);
        for _ in 0..3 {
            assert!(matches!(host.ask("a").await.unwrap().answer, Answer::Refused(_)));
            sleep(Duration::from_secs(61)).await;
        }
    });
    let refused = |answer| matches!(answer, Answer::Refused(failure) if failure.kind == FailureKind::NotUsable && failure.message.contains("quarantined"));
    paused(async {
        let host = host(Faults::Never, 1, &crashing);
        let answer = host.ask("a").await.unwrap().answer;
        assert!(refused(answer.clone()), "{answer:?}");
        assert_eq!(host.world.loads(), 0, "nor is it preloaded");
    });
    paused(async {
        let host = host(Faults::Never, 1, &yaml("{other: 1}"));
        assert_eq!(host.ask("a").await.unwrap().answer, Answer::Whole, "made of something else");
    });
    paused(async {
        let host = host(Faults::Always("load: it dies"), 1, &crashing);
        for _ in 0..3 {
            assert!(matches!(host.ask("a").await.unwrap().answer, Answer::Refused(_)));
            sleep(Duration::from_secs(61)).await;
        }
    });
    paused(async {
        let host = host(Faults::Never, 1, &crashing);
        host.handle().load("a".into(), AccessEntry::default()).await.unwrap();
        assert_eq!(host.ask("a").await.unwrap().answer, Answer::Whole);
        sleep(Duration::from_secs(1)).await;
    });
    paused(async {
        let host = host(Faults::Never, 1, &crashing);
        assert_eq!(host.ask("a").await.unwrap().answer, Answer::Whole, "the operator ended it for good");
    });
}

#[test]
fn a_model_whose_worker_died_passes_a_canary_before_it_counts_as_loaded() {
    for kind in ["text", "audio"] {
        for (fault, passes) in [
            (Faults::Never, true),
            (Faults::First("generate: it dies before it said anything"), false),
            (Faults::First("generate: the plugin refuses"), true),
        ] {
            paused(async move {
                let yaml = format!("models:\n  a: {{type: {kind}, plugin: fake}}\n");
                let host = host(fault, 1, &format!("devices: [{{id: cpu, memory: 150MiB}}]\n{yaml}"));
                host.handle().load("a".into(), AccessEntry::default()).await.unwrap();
                assert!(host.world.taken().is_empty(), "a first load needs no canary");
                host.world.crash();
                sleep(Duration::from_secs(1)).await;
                let loaded = host.handle().load("a".into(), AccessEntry::default()).await;
                assert_eq!(loaded.is_ok(), passes, "{kind} {fault:?}: {loaded:?}");
            });
        }
    }
}

/// Requests that each take so many of 10 MiB beside the model.
fn paying(faults: Faults, cost: u64) -> Host {
    let yaml = "devices: [{id: cpu, memory: 150MiB}]\nlimits: {request_timeout: 5s}\nmodels:\n  a: {type: audio, plugin: fake}\n";
    Host::start(World::new(faults, Order::ExitFirst, 1 << 40).with_cost(10 << 20, cost << 20), 3, yaml)
}

#[test]
fn requests_that_cost_much_wait_for_one_another() {
    for (cost, rounds) in [(3, 1), (5, 2), (6, 3)] {
        paused(async move {
            let host = paying(Faults::Never, cost);
            assert_eq!(host.ask("a").await.unwrap().answer, Answer::Whole);
            let begun = Instant::now();
            for task in [(); 3].map(|()| host.ask("a")) {
                assert_eq!(task.await.unwrap().answer, Answer::Whole);
            }
            // Four tokens of 5 ms each.
            assert_eq!(begun.elapsed().as_millis() / 20, rounds, "{cost} MiB: {:?}", begun.elapsed());
        });
    }
}

#[test]
fn a_request_that_finds_no_room_is_told_in_time() {
    paused(async {
        let host = paying(Faults::First("generate: it hangs"), 6);
        let (begun, hung) = (Instant::now(), host.ask("a"));
        sleep(Duration::from_secs(1)).await;
        let told = host.ask("a").await.unwrap();
        assert!(matches!(told.answer, Answer::Refused(failure) if failure.kind == FailureKind::Busy));
        assert_eq!(begun.elapsed().as_secs(), 6);
        assert!(matches!(hung.await.unwrap().answer, Answer::Refused(_)));
        // It heeds no cancel, so its worker is ended.
        sleep(Duration::from_secs(15)).await;
        assert_eq!(host.ask("a").await.unwrap().answer, Answer::Whole, "its part was given back");
    });
    paused(async {
        let told = paying(Faults::Never, 11).ask("a").await.unwrap();
        assert!(matches!(told.answer, Answer::Refused(failure) if failure.kind == FailureKind::OutOfMemory));
    });
}

#[test]
fn a_worker_that_does_not_leave_holds_up_nobody_who_needs_no_room() {
    paused(async {
        let yaml = "devices: [{id: cpu, memory: 450MiB}]\nmodels:\n  a: {type: text, plugin: fake}\n  b: {type: text, plugin: fake}\n";
        let host = host(Faults::Always("stop: it does not heed"), 1, yaml);
        assert_eq!(host.ask("a").await.unwrap().answer, Answer::Whole);
        let (handle, begun) = (host.handle(), Instant::now());
        let unload = tokio::spawn(async move { handle.unload("a".into(), None, AccessEntry::default()).await });
        sleep(Duration::from_millis(1)).await;
        assert_eq!(host.ask("b").await.unwrap().answer, Answer::Whole);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert!(!unload.is_finished());
        unload.await.unwrap().unwrap();
        assert!((30..32).contains(&begun.elapsed().as_secs()), "its grace: {:?}", begun.elapsed());
    });
}

#[test]
fn a_shutdown_waits_for_leases_as_long_as_it_may_and_no_longer() {
    paused(async {
        let host = host(Faults::Always("generate: it hangs"), 1, ONE);
        let hung = host.ask("a");
        // Longer than the load takes: by now it holds a lease.
        sleep(Duration::from_secs(1)).await;
        let begun = Instant::now();
        host.runtime.shutdown(Duration::from_secs(20)).await;
        assert_eq!(begun.elapsed().as_secs(), 20);
        assert!(matches!(hung.await.unwrap().answer, Answer::Refused(_)));
    });
}

#[test]
fn a_shutdown_waits_seconds_for_a_worker_that_heeds_nothing_and_not_for_one_that_plans() {
    for (fault, seconds) in [("stop: it does not heed", 5), ("start: no plan comes", 0)] {
        paused(async move {
            let host = host(Faults::Always(fault), 1, ONE);
            let asked = host.ask("a");
            // Longer than a load takes, shorter than a plan may.
            sleep(Duration::from_secs(1)).await;
            let begun = Instant::now();
            host.runtime.shutdown(Duration::from_secs(60)).await;
            assert_eq!(begun.elapsed().as_secs(), seconds, "{fault}");
            let answer = asked.await.unwrap().answer;
            assert!(
                seconds > 0 || matches!(answer, Answer::Refused(failure) if failure.kind == FailureKind::ShuttingDown)
            );
        });
    }
}

#[test]
fn who_waits_too_long_is_told_and_the_load_goes_on() {
    paused(async {
        let yaml = "devices: [{id: cpu, memory: 150MiB}]\nlimits: {hold: 5s}\nmodels:\n  a: {type: text, plugin: fake, startup_time: 60}\n";
        let host = host(Faults::Always("load: it never ends"), 1, yaml);
        let begun = Instant::now();
        let told = host.ask("a").await.unwrap();
        assert!(matches!(told.answer, Answer::Refused(failure) if failure.kind == FailureKind::StillLoading));
        assert_eq!(begun.elapsed().as_secs(), 5);
        // Who comes later is told why the load failed, when it does.
        sleep(Duration::from_secs(52)).await;
        let told = host.ask("a").await.unwrap();
        assert!(matches!(told.answer, Answer::Refused(failure) if failure.kind == FailureKind::TimedOut));
        assert_eq!((begun.elapsed().as_secs(), host.world.loads()), (60, 1));
    });
}

#[test]
fn who_waits_for_a_slot_waits_as_long_as_a_request_may_run() {
    paused(async {
        let limits = "limits: {hold: 2s, request_timeout: 20s}";
        let yaml =
            format!("devices: [{{id: cpu, memory: 150MiB}}]\n{limits}\nmodels:\n  a: {{type: text, plugin: fake}}\n");
        let host = host(Faults::First("generate: it hangs"), 1, &yaml);
        let (begun, hung) = (Instant::now(), host.ask("a"));
        sleep(Duration::from_secs(15)).await;
        // Its worker is ended 10 s after the first has run out of time, and it is loaded again for the second.
        assert_eq!(host.ask("a").await.unwrap().answer, Answer::Whole);
        assert!(begun.elapsed() > Duration::from_secs(20), "{:?}", begun.elapsed());
        assert!(
            matches!(hung.await.unwrap().answer, Answer::Refused(failure) if failure.kind == FailureKind::TimedOut)
        );
    });
}

#[test]
fn three_models_for_one_place_each_serve_what_they_were_loaded_for() {
    paused(async {
        let models: String = ["a", "b", "c"].map(|id| format!("  {id}: {{type: text, plugin: fake}}\n")).concat();
        let yaml = format!("devices: [{{id: cpu, memory: 150MiB}}]\nmodels:\n{models}");
        let host = Host::start(World::new(Faults::Never, Order::ExitFirst, 150 << 20), 1, &yaml);
        for task in ["a", "b", "c"].map(|model| host.ask(model)) {
            assert_eq!(task.await.unwrap().answer, Answer::Whole);
        }
        // One that left before it had served would have been loaded again.
        assert_eq!((host.world.loads(), host.world.broken()), (3, Vec::new()));
    });
}

#[test]
fn models_that_fit_load_side_by_side() {
    paused(async {
        let yaml = "devices: [{id: cpu, memory: 450MiB}]\nmodels:\n  a: {type: text, plugin: fake}\n  b: {type: text, plugin: fake}\n";
        let host = host(Faults::Never, 1, yaml);
        let begun = Instant::now();
        let both = ["a", "b"].map(|model| host.ask(model));
        for task in both {
            let told = task.await.unwrap();
            // 4 ms to start, 20 to load: one after the other, the second would wait for 48.
            assert!(told.granted - begun < Duration::from_millis(30), "{:?}", told.granted - begun);
        }
    });
}

#[test]
fn a_higher_priority_is_evicted_later() {
    paused(async {
        let models =
            ["a: {priority: 1, ", "b: {", "c: {"].map(|start| format!("  {start}type: text, plugin: fake}}\n"));
        let host =
            host(Faults::Never, 1, &format!("devices: [{{id: cpu, memory: 250MiB}}]\nmodels:\n{}", models.concat()));
        for model in ["a", "b", "c"] {
            assert_eq!(host.ask(model).await.unwrap().answer, Answer::Whole);
        }
        // Of two idle models the one used last had to go.
        assert_eq!(host.world.alive(), ["a".into(), "c".into()]);
    });
}
