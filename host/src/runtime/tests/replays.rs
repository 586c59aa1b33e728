//! Requests that are tried again because their worker died: one of them may be what it died of, and nobody else is to pay for
//! finding out.

use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::super::AccessEntry;
use super::fake::{Faults, Order, TOKENS, Times, World};
use super::{Answer, Class, Host, OutputMode, Submission, fake, paused, told};
use crate::domain::{FailureKind, Kind};

const SECOND: Duration = Duration::from_secs(1);
/// What each request takes.
const SERVICE: Duration = Duration::from_secs(18);
const START: Duration = Duration::from_millis(30);
const LOAD: Duration = Duration::from_millis(500);
/// Workers that may die of one request, whatever it does: the first, four on trial, and two alone.
const DEATHS_MAX: u32 = 7;
/// How often someone else asks.
const OTHERS_EVERY: Duration = Duration::from_secs(6);

/// An answer, and how long it took until the first grant and until the end.
struct Timed {
    answer: Answer,
    waited: Duration,
    took: Duration,
}

fn host(leases_max: u32) -> Host {
    let yaml = "devices: [{id: cpu, memory: 150MiB}]\nlimits: {hold: 10m}\nmodels:\n  a: {type: text, plugin: fake}\n";
    let times = Times { start: START, load: LOAD, token: SERVICE / TOKENS };
    Host::start(World::new(Faults::Never, Order::ExitFirst, 1 << 40).with_times(times), leases_max, yaml)
}

/// A request for an answer in one piece, which its worker dies of after so many milliseconds, if any.
fn ask(host: &Host, poison_ms: Option<u64>) -> JoinHandle<Timed> {
    let task = serde_json::json!({"number": fake::unique(), "poison_ms": poison_ms}).to_string();
    let ask = Bytes::from(task).into();
    let (class, delivery) = (Class::Interactive, OutputMode::Gathered);
    let submission = Submission {
        model: "a".into(),
        kind: Kind::Text,
        ask,
        class,
        delivery,
        keep_alive: None,
        access: AccessEntry::default(),
    };
    let (handle, asked) = (host.handle(), Instant::now());
    tokio::spawn(async move {
        let told = told(handle, "a", submission).await;
        Timed { answer: told.answer, waited: told.granted - asked, took: asked.elapsed() }
    })
}

/// Those who ask meanwhile.
async fn others(host: &Host) -> Vec<Timed> {
    let mut asked = Vec::new();
    for _ in 0..60 {
        asked.push(ask(host, None));
        sleep(OTHERS_EVERY).await;
    }
    let mut answers = Vec::new();
    for task in asked {
        answers.push(task.await.unwrap());
    }
    answers
}

#[test]
fn a_death_that_is_nobodys_doing_closes_a_model_for_as_long_as_one_request_takes() {
    paused(async {
        let host = host(20);
        let first: Vec<_> = (0..20).map(|_| ask(&host, None)).collect();
        sleep(10 * SECOND).await;
        host.world.crash();
        let second: Vec<_> = (0..20).map(|_| ask(&host, None)).collect();
        for task in first {
            let told = task.await.unwrap();
            assert_eq!(told.answer, Answer::Whole);
            assert!(told.took < 10 * SECOND + SERVICE + SECOND, "one after the other: {:?}", told.took);
        }
        for task in second {
            let told = task.await.unwrap();
            assert_eq!(told.answer, Answer::Whole);
            assert!(told.waited < SERVICE + SECOND, "shut out for {:?}", told.waited);
        }
        assert_eq!((host.world.loads(), host.world.broken()), (2, Vec::new()));
    });
}

#[test]
fn a_poisonous_request_is_found_while_others_are_served() {
    // At once, later than a trial of the others lasts, and later than any trial but the last.
    for (poison_ms, leases_max) in [(50, 8), (3_000, 8), (15_000, 8), (50, 64), (50, 2), (50, 1)] {
        paused(async move {
            let host = host(leases_max);
            let innocent: Vec<_> = (1..leases_max).map(|_| ask(&host, None)).collect();
            sleep(5 * SECOND).await;
            let poisonous = ask(&host, Some(poison_ms));
            sleep(SECOND).await;
            let others = if leases_max > 2 { others(&host).await } else { Vec::new() };
            let context = format!("{poison_ms} ms, {leases_max} at once");
            let told = poisonous.await.unwrap();
            let found = matches!(&told.answer, Answer::Refused(failure) if failure.kind == FailureKind::Suspected);
            assert!(found, "{context}: {:?}", told.answer);
            for task in innocent {
                assert_eq!(task.await.unwrap().answer, Answer::Whole, "{context}");
            }
            let deaths = host.world.poisoned_workers();
            assert!((3..=DEATHS_MAX).contains(&deaths), "{context}: {deaths} deaths");
            let longest = others.iter().map(|told| told.waited).max().unwrap_or_default();
            eprintln!("{context}: {deaths} deaths, found after {:?}, others waited {longest:?} at most", told.took);
            assert!(others.iter().all(|told| told.answer == Answer::Whole), "{context}");
            // Until those that run have ended, and then for a trial, in which nothing takes longer than it takes.
            assert!(longest < 2 * SERVICE + 2 * SECOND, "{context}: someone was shut out for {longest:?}");
            assert_eq!(host.world.broken(), [""; 0], "{context}");
        });
    }
}

#[test]
fn two_poisonous_requests_are_both_found() {
    paused(async {
        // One at once, the other as it ends.
        let host = host(4);
        let both = [ask(&host, Some(50)), ask(&host, Some(17_000))];
        let innocent: Vec<_> = (0..2).map(|_| ask(&host, None)).collect();
        for task in both {
            let told = task.await.unwrap();
            assert!(matches!(&told.answer, Answer::Refused(failure) if failure.kind == FailureKind::Suspected));
        }
        for task in innocent {
            assert_eq!(task.await.unwrap().answer, Answer::Whole);
        }
        assert!(host.world.poisoned_workers() <= 2 * DEATHS_MAX);
    });
}
