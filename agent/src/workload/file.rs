//! Pods from a file: a laptop, a test, or a node that may not ask the API server.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1 as k8s;
use serde_json::Value;
use tokio::fs;
use tokio::time::sleep;

use super::Index;
use super::pod::Pod;

/// How often the file is looked at. A person who saves it sees the effect at once; a stat costs a microsecond.
const POLL: Duration = Duration::from_secs(1);

/// What differs when a file was written: time of modification in seconds and nanoseconds, size, inode number.
type Stamp = (i64, i64, u64, u64);

/// Reads the file whenever it changes, for ever. While it cannot be read, the pods of the last good content stay.
pub(super) async fn run(path: &Path, index: &Index, node: &str) {
    let mut last = None;
    loop {
        match read_if_changed(path, node, last).await {
            Ok(None) => {}
            Ok(Some((stamp, pods))) => {
                last = Some(stamp);
                index.pods_replaced(pods);
                index.source_recovered();
            }
            Err(error) => {
                // Whatever the file is next, it is worth reading.
                last = None;
                index.source_failed(&format!("read pods from {}: {error}", path.display()));
            }
        }
        sleep(POLL).await;
    }
}

/// Why a file has no pods for us.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("{0}; the agent needs a file there that it may read")]
    Io(#[from] std::io::Error),
    /// It is no JSON, or that of something else.
    #[error("{0}; it should be the output of `kubectl get pods -A -o json`")]
    Json(#[from] serde_json::Error),
    /// It is another kind of object.
    #[error(
        "it holds an object of kind `{0}`, expected `List` or `Pod`; \
         it should be the output of `kubectl get pods -A -o json`"
    )]
    Kind(String),
    /// A pod in it does not come from an API server.
    #[error(
        "the pod {0} has no metadata.uid; take the file from the API server with `kubectl get pods -A -o json`"
    )]
    Uid(String),
}

async fn read_if_changed(
    path: &Path,
    node: &str,
    last: Option<Stamp>,
) -> Result<Option<(Stamp, Vec<Pod>)>, Error> {
    // Before the content: a write in between shows the next time.
    let metadata = fs::metadata(path).await?;
    let stamp = (
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.size(),
        metadata.ino(),
    );
    if last == Some(stamp) {
        return Ok(None);
    }
    let pods = parse(&fs::read(path).await?, node)?;
    Ok(Some((stamp, pods)))
}

/// The pods of a list, or a single pod, that run on the node or do not say where they run.
pub fn parse(content: &[u8], node: &str) -> Result<Vec<Pod>, Error> {
    let mut document: Value = serde_json::from_slice(content)?;
    let kind = document["kind"].as_str().unwrap_or_default();
    let pods: Vec<k8s::Pod> = match kind {
        "List" | "PodList" => serde_json::from_value(document["items"].take())?,
        "Pod" => vec![serde_json::from_value(document)?],
        other => return Err(Error::Kind(other.escape_debug().to_string())),
    };
    let mut kept = Vec::new();
    for pod in pods {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let pod = Pod::from_api(pod).ok_or_else(|| Error::Uid(name.escape_debug().to_string()))?;
        if pod.node.as_deref().is_none_or(|other| other == node) {
            kept.push(pod);
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tempfile::TempDir;

    fn pod(uid: &str, node: Option<&str>) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"uid": uid, "name": format!("pod-{uid}"), "namespace": "shop"},
            "spec": {"nodeName": node, "containers": [{"name": "app"}]}
        })
    }

    fn list(pods: &[Value]) -> String {
        json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string()
    }

    fn uids(content: &str) -> Vec<String> {
        let pods = parse(content.as_bytes(), "n1").expect("pods");
        pods.into_iter().map(|pod| pod.uid).collect()
    }

    #[test]
    fn a_list_and_a_single_pod() {
        assert_eq!(
            uids(&list(&[pod("a", Some("n1")), pod("b", Some("n1"))])),
            ["a", "b"]
        );
        assert_eq!(uids(&pod("a", Some("n1")).to_string()), ["a"]);
        let mut bare = pod("a", Some("n1"));
        // What the API server itself answers has no kind on each item.
        bare.as_object_mut()
            .expect("an object")
            .retain(|key, _| key != "kind" && key != "apiVersion");
        assert_eq!(
            uids(&json!({"kind": "PodList", "items": [bare]}).to_string()),
            ["a"]
        );
        assert_eq!(uids(&list(&[])), [""; 0]);
    }

    #[test]
    fn pods_of_other_nodes_are_left_out() {
        assert_eq!(
            uids(&list(&[
                pod("here", Some("n1")),
                pod("there", Some("n2")),
                pod("anywhere", None)
            ])),
            ["here", "anywhere"]
        );
    }

    #[test]
    fn errors_say_how_to_mend() {
        for (content, expected) in [
            (
                "{\"kind\": \"List\", \"items\": [",
                "EOF while parsing a list",
            ),
            (
                &json!({"kind": "NodeList", "items": []}).to_string(),
                "kind `NodeList`, expected `List` or `Pod`",
            ),
            (
                &list(&[json!({"apiVersion": "v1", "kind": "Service", "metadata": {}})]),
                "\"Service\", expected Pod",
            ),
            (
                &json!({"kind": "\u{1b}[2J"}).to_string(),
                "kind `\\u{1b}[2J`, expected",
            ),
            (
                &list(&[json!({"metadata": {"name": "web"}})]),
                "the pod web has no metadata.uid",
            ),
        ] {
            let error = parse(content.as_bytes(), "n1")
                .expect_err("refused")
                .to_string();
            assert!(error.contains(expected), "{error}");
            assert!(error.contains("kubectl get pods -A -o json"), "{error}");
        }
    }

    /// A source that runs on a file until the test ends.
    struct Reading {
        dir: TempDir,
        index: Index,
    }

    impl Reading {
        fn start() -> Self {
            let dir = TempDir::new().expect("a temporary directory");
            let index = Index::new("n1");
            let path = dir.path().join("pods.json");
            tokio::spawn({
                let index = index.clone();
                async move { run(&path, &index, "n1").await }
            });
            Self { dir, index }
        }

        /// As `kubectl … > pods.json` does.
        fn write(&self, content: &str) {
            std::fs::write(self.dir.path().join("pods.json"), content).expect("written");
        }

        /// As a careful program does.
        fn rename_over(&self, content: &str) {
            let next = self.dir.path().join("next");
            std::fs::write(&next, content).expect("written");
            std::fs::rename(next, self.dir.path().join("pods.json")).expect("renamed");
        }

        async fn until(&self, condition: impl Fn(&dinle_proto::v1::PodSource) -> bool) {
            // Paused, the clock leaps to the next poll.
            while !condition(&self.index.status()) {
                sleep(POLL / 2).await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_file_is_read_again_when_it_changes() {
        let reading = Reading::start();
        reading
            .until(|status| status.error.contains("No such file"))
            .await;
        assert!(!reading.index.status().synced);

        reading.write(&list(&[pod("a", Some("n1"))]));
        reading.until(|status| status.pods == 1).await;
        let status = reading.index.status();
        assert!(status.synced);
        assert_eq!(status.error, "");

        // Of the same size: only the inode differs for sure.
        reading.rename_over(&list(&[pod("b", Some("n1"))]));
        let cgroup = "/kubepods/pod2f1ee1cf-7f5c-4f0e-9b0b-0d5c3a9d8e11";
        reading.index.cgroup_created(7, 1, cgroup, false);
        reading.rename_over(&list(&[
            pod("2f1ee1cf-7f5c-4f0e-9b0b-0d5c3a9d8e11", Some("n1")),
            pod("b", Some("n1")),
        ]));
        reading.until(|status| status.pods == 2).await;
        let workload = reading.index.get(7).expect("known");
        assert_eq!(workload.pod, "pod-2f1ee1cf-7f5c-4f0e-9b0b-0d5c3a9d8e11");
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_written_file_keeps_the_old_content() {
        let reading = Reading::start();
        let whole = list(&[pod("a", Some("n1")), pod("b", Some("n1"))]);
        reading.write(&whole);
        reading.until(|status| status.pods == 2).await;

        reading.write(&whole[..whole.len() / 2]);
        reading.until(|status| !status.error.is_empty()).await;
        let status = reading.index.status();
        assert_eq!(status.pods, 2);
        assert!(status.synced);
        assert!(status.error.contains("read pods from"), "{}", status.error);
        assert!(status.error.contains("EOF"), "{}", status.error);

        reading.write(&list(&[pod("c", Some("n1"))]));
        reading.until(|status| status.error.is_empty()).await;
        assert_eq!(reading.index.status().pods, 1);
    }
}
