//! Answers, for a short time. Each is asked for once, however many want it at the same time.

use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ring::digest::{SHA256, digest as hash};
use tokio::{sync::OnceCell, time::Instant};

/// What stands for a secret: it is not kept itself.
pub(super) fn digest(secret: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hash(&SHA256, secret.as_bytes()).as_ref());
    bytes
}

/// Empty while it is asked for; then since when it is known, and what it is or why it could not be asked for.
type Answer<V> = OnceCell<(Instant, Result<V, String>)>;

/// Bounded: when it is full, what is out of date goes, and if that is nothing, everything.
pub(super) struct Cache<K, V> {
    holds: Duration,
    most: usize,
    answers: Mutex<HashMap<K, Arc<Answer<V>>>>,
}

impl<K: Clone + Eq + Hash, V: Clone> Cache<K, V> {
    pub(super) fn new(holds: Duration, most: usize) -> Self {
        Self {
            holds,
            most,
            answers: Mutex::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.len()
    }

    /// The answer that is known, or what comes of asking. That it could not be asked for is told to those who waited for it, and no longer.
    pub(super) async fn get_or_ask(
        &self,
        key: &K,
        ask: impl Future<Output = Result<V, String>>,
    ) -> Result<V, String> {
        let answer = self.answer(key);
        // Should whoever asks go meanwhile, the next of those who wait asks.
        let asked = answer.get_or_init(|| async {
            let answer = ask.await;
            (Instant::now(), answer)
        });
        asked.await.1.clone()
    }

    fn answer(&self, key: &K) -> Arc<Answer<V>> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = answers.get(key).filter(|answer| self.is_good(answer)) {
            return answer.clone();
        }
        if answers.len() >= self.most {
            answers.retain(|_, answer| self.is_good(answer));
        }
        if answers.len() >= self.most {
            answers.clear();
        }
        let answer = Arc::default();
        answers.insert(key.clone(), Arc::clone(&answer));
        answer
    }

    fn is_good(&self, answer: &Answer<V>) -> bool {
        match answer.get() {
            None => true,
            Some((since, answer)) => answer.is_ok() && since.elapsed() < self.holds,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::{advance, sleep};

    use super::*;

    const HOLDS: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn an_answer_holds_for_a_time_and_there_are_only_so_many() {
        let cache = Cache::new(HOLDS, 3);
        // What is known, or else this.
        let get = async |key, new: u32| cache.get_or_ask(&key, async { Ok(new) }).await;
        assert_eq!(get("a", 1).await, Ok(1));
        assert_eq!(get("a", 9).await, Ok(1));
        advance(Duration::from_secs(4)).await;
        assert_eq!(get("b", 2).await, Ok(2));
        advance(Duration::from_secs(1)).await;
        assert_eq!((get("a", 3).await, get("b", 9).await), (Ok(3), Ok(2)));
        advance(Duration::from_secs(4)).await;
        assert_eq!(get("c", 4).await, Ok(4));
        // Full: the one that is out of date makes room.
        assert_eq!(get("d", 5).await, Ok(5));
        assert_eq!((get("a", 9).await, cache.len()), (Ok(3), 3));
        // All of them are good: they go.
        assert_eq!((get("e", 6).await, cache.len()), (Ok(6), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn what_many_want_at_once_is_asked_for_once() {
        let cache = Arc::new(Cache::new(HOLDS, 3));
        let asked = Arc::new(AtomicUsize::new(0));
        // It takes longer than an answer holds.
        let get = |answer: Result<u32, String>| {
            let (cache, asked) = (cache.clone(), asked.clone());
            async move {
                let ask = async {
                    asked.fetch_add(1, Ordering::Relaxed);
                    sleep(2 * HOLDS).await;
                    answer
                };
                cache.get_or_ask(&"a", ask).await
            }
        };
        let away = || Err("nobody is there".to_owned());
        let late = async {
            sleep(HOLDS).await;
            get(Ok(9)).await
        };
        let told = tokio::join!(get(away()), get(Ok(9)), late);
        assert_eq!(told, (away(), away(), away()));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        // It holds for nobody who comes later.
        let first = tokio::spawn(get(Ok(1)));
        sleep(HOLDS).await;
        let (gone, second) = tokio::join!(
            async {
                sleep(HOLDS / 2).await;
                first.abort();
                first.await.expect_err("it has gone")
            },
            get(Ok(2))
        );
        assert!(gone.is_cancelled());
        assert_eq!(second, Ok(2), "who waited asks");
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn a_digest_is_that_of_the_standard() {
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let hex: String = digest("abc")
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hex, expected);
    }
}
