//! Answers, for a short time.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ring::digest::{SHA256, digest as hash};
use tokio::time::Instant;

/// What stands for a secret: it is not kept itself.
pub(super) fn digest(secret: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hash(&SHA256, secret.as_bytes()).as_ref());
    bytes
}

/// Bounded: when it is full, what is out of date goes, and if that is nothing, everything.
pub(super) struct Cache<K, V> {
    holds: Duration,
    most: usize,
    answers: Mutex<HashMap<K, (Instant, V)>>,
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
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

    pub(super) fn get(&self, key: &K) -> Option<V> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, answer) = answers.get(key)?;
        (since.elapsed() < self.holds).then(|| answer.clone())
    }

    pub(super) fn put(&self, key: K, answer: V) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= self.most {
            answers.retain(|_, (since, _)| since.elapsed() < self.holds);
        }
        if answers.len() >= self.most {
            answers.clear();
        }
        answers.insert(key, (Instant::now(), answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_answer_holds_for_a_time_and_there_are_only_so_many() {
        let cache = Cache::new(Duration::from_secs(5), 3);
        cache.put("a", 1);
        assert_eq!(cache.get(&"a"), Some(1));
        tokio::time::advance(Duration::from_secs(4)).await;
        cache.put("b", 2);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((cache.get(&"a"), cache.get(&"b")), (None, Some(2)));
        cache.put("c", 3);
        // Full: the one that is out of date makes room.
        cache.put("d", 4);
        assert_eq!((cache.get(&"b"), cache.get(&"d")), (Some(2), Some(4)));
        cache.put("e", 5);
        assert_eq!((cache.get(&"b"), cache.get(&"e")), (None, Some(5)));
        assert_eq!(cache.answers.lock().expect("no panic").len(), 1);
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
