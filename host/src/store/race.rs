//! Several ways to one thing: the first is preferred, and a silent one holds up nobody.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

/// How a race went.
#[derive(Debug)]
pub(super) struct Outcome<T, E> {
    /// Who was first, by position, and what it has.
    pub(super) won: Option<(usize, T)>,
    /// Who failed before that.
    pub(super) failed: Vec<(usize, E)>,
}

/// Starts the first; the next one as soon as one has failed, or when nothing was heard for `patience`. The first success
/// ends it, and all others are dropped.
pub(super) async fn staggered<T, E, F: Future<Output = Result<T, E>>>(
    contestants: Vec<F>,
    patience: Duration,
) -> Outcome<T, E> {
    let mut waiting =
        contestants.into_iter().enumerate().map(|(position, contestant)| async move { (position, contestant.await) });
    let mut running: FuturesUnordered<_> = waiting.next().into_iter().collect();
    let mut failed = Vec::new();
    loop {
        tokio::select! {
            biased;
            ended = running.next() => match ended {
                None => return Outcome { won: None, failed },
                Some((position, Ok(prize))) => return Outcome { won: Some((position, prize)), failed },
                Some((position, Err(error))) => {
                    failed.push((position, error));
                    running.extend(waiting.next());
                }
            },
            () = tokio::time::sleep(patience), if waiting.len() > 0 => running.extend(waiting.next()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use tokio::time::{Instant, sleep};

    use super::staggered;

    const PATIENCE: Duration = Duration::from_secs(3);

    /// One that answers, or fails, after so many seconds.
    fn after(seconds: u64, answer: Result<u8, u8>) -> BoxFuture<'static, Result<u8, u8>> {
        async move {
            sleep(Duration::from_secs(seconds)).await;
            answer
        }
        .boxed()
    }

    async fn race(
        contestants: Vec<BoxFuture<'static, Result<u8, u8>>>,
    ) -> (Option<(usize, u8)>, Vec<(usize, u8)>, u64) {
        let begun = Instant::now();
        let outcome = staggered(contestants, PATIENCE).await;
        (outcome.won, outcome.failed, begun.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_that_answers_wins() {
        assert_eq!(
            race(vec![after(2, Ok(1)), after(0, Ok(2))]).await,
            (Some((0, 1)), vec![], 2),
            "order is preference"
        );
        assert_eq!(
            race(vec![after(600, Ok(1)), after(1, Ok(2))]).await,
            (Some((1, 2)), vec![], 4),
            "silence costs 3 s"
        );
        assert_eq!(race(vec![after(4, Ok(1)), after(9, Ok(2))]).await, (Some((0, 1)), vec![], 4), "late is not lost");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_makes_room_at_once() {
        assert_eq!(race(vec![after(0, Err(7)), after(1, Ok(2))]).await, (Some((1, 2)), vec![(0, 7)], 1));
        let silent = vec![after(600, Err(9)), after(0, Err(7)), after(0, Err(8))];
        assert_eq!(race(silent).await, (None, vec![(1, 7), (2, 8), (0, 9)], 600));
        assert_eq!(race(vec![]).await, (None, vec![], 0));
    }
}
