//! Looking at what moves only by what the same task polls, such as the end of a channel whose other end it holds: woken for each
//! move, it would be told what it is about to see, and its thread would wake another one to tell it.

use std::task::{Context, Poll, Waker};

use tokio::task::coop::has_budget_remaining;

/// Looks without being woken by it. Whoever has used up a task's budget is told that there is nothing: only then the task is woken,
/// to look again.
pub(super) fn look<T>(cx: &mut Context<'_>, mut look: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
    let seen = look(&mut Context::from_waker(Waker::noop()));
    if seen.is_pending() && !has_budget_remaining() {
        cx.waker().wake_by_ref();
    }
    seen
}

#[cfg(test)]
pub(super) mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::time::Duration;

    use tokio::task::coop::consume_budget;
    use tokio::task::yield_now;
    use tokio::time::timeout;

    use super::*;

    /// What a task may do before it gives way.
    pub(in crate::worker) const BUDGET: u32 = 128;

    /// The future, of whose task's budget so much is spent each time before it is polled.
    pub(in crate::worker) async fn having_spent<F: Future>(spent: u32, future: F) -> F::Output {
        let mut future = pin!(future);
        // Behind this it has all of it.
        yield_now().await;
        poll_fn(|cx| {
            for _ in 0..spent {
                assert!(pin!(consume_budget()).poll(cx).is_ready(), "more than there is");
            }
            future.as_mut().poll(cx)
        })
        .await
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_no_budget_left_looks_again() {
        for spent in [0, BUDGET - 1, BUDGET] {
            let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
            sender.try_send(()).expect("there is room");
            let mut polls = 0;
            yield_now().await;
            let looking = poll_fn(|cx| {
                polls += 1;
                if polls == 1 {
                    for _ in 0..spent {
                        assert!(pin!(consume_budget()).poll(cx).is_ready());
                    }
                }
                look(cx, |quiet| receiver.poll_recv(quiet))
            });
            assert_eq!(timeout(Duration::from_secs(60), looking).await, Ok(Some(())), "nobody looks again");
            assert_eq!(polls, if spent == BUDGET { 2 } else { 1 });
        }
    }
}
