//! An agent that runs as a process, as on a node.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    time::Instant,
};

use dinle_proto::v1::{self, observer_client::ObserverClient};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use crate::{
    act::dinle,
    bpf::{self, Held},
    cgroup,
    patience::{eventually, patience},
    pods::{self, Pod},
    stream::{Stream, Window},
};

/// An agent. Dropping it stops it, and checks that it leaves nothing in the kernel. Its log is shown when the test fails.
pub struct Agent {
    /// Where it serves gRPC.
    pub listen: SocketAddr,
    /// Where it serves HTTP.
    pub http: SocketAddr,
    /// What a subscriber of the usual kind connects to.
    endpoint: Endpoint,
    child: Child,
    ended: Option<ExitStatus>,
    dir: TempDir,
    runtime: Runtime,
}

/// A directory that is removed with the value.
pub fn temporary() -> TempDir {
    // A machine that has nothing but a kernel may lack it.
    fs::create_dir_all(env::temp_dir()).expect("the directory for temporary files");
    TempDir::new().expect("a temporary directory")
}

/// Loopback addresses that no other test uses: all of 127.0.0.0/8 is the machine itself.
fn addresses() -> (SocketAddr, SocketAddr) {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let host = Ipv4Addr::new(127, high, low, NEXT.fetch_add(1, Ordering::Relaxed));
    // Ports at which no connection begins by itself.
    ((host, 4380).into(), (host, 4381).into())
}

/// A command that would start an agent, and the addresses that it would listen on.
pub fn command(flags: &[&str]) -> (Command, SocketAddr, SocketAddr) {
    let (listen, http) = addresses();
    let mut command = Command::new(dinle());
    command
        .arg("agent")
        .args(flags)
        .args(["--node-name", "test-node", "--linger", "200ms"])
        .stdin(Stdio::null());
    let given = |flag: &str| {
        let mut words = flags.iter().skip_while(|word| **word != flag).skip(1);
        words.next().map(|value| value.to_string())
    };
    let mut set = |flag: &str, value: String| {
        given(flag).unwrap_or_else(|| {
            command.args([flag, &value]);
            value
        })
    };
    let address = |value: String| value.parse().expect("an address");
    set("--cgroup-root", cgroup::root().display().to_string());
    let listen = address(set("--listen", listen.to_string()));
    let http = address(set("--http", http.to_string()));
    (command, listen, http)
}

impl Agent {
    /// An agent that knows these pods, and has read them.
    pub fn with_pods(pods: &[&Pod], flags: &[&str]) -> Self {
        let dir = temporary();
        let file = dir.path().join("pods.json");
        fs::write(&file, pods::list(pods)).expect("the pods are written");
        let source = format!("file:{}", file.display());
        let agent = Self::start(dir, &[&["--pods", &source], flags].concat());
        eventually("the agent is ready", || agent.get("/readyz").0 == 200);
        agent
    }

    /// An agent that serves; where its pods come from is among the flags.
    pub fn with(flags: &[&str]) -> Self {
        Self::start(temporary(), flags)
    }

    fn start(dir: TempDir, flags: &[&str]) -> Self {
        let (mut command, listen, http) = command(flags);
        let log = fs::File::create(dir.path().join("log")).expect("a log");
        let child = command
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("run {command:?}: {error}"));
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let endpoint = Endpoint::from_shared(format!("http://{listen}")).expect("an address");
        let mut agent = Self {
            listen,
            http,
            endpoint,
            child,
            ended: None,
            dir,
            runtime,
        };
        eventually("the agent serves", || {
            if let Some(status) = agent.child.try_wait().expect("a child") {
                agent.ended = Some(status);
                panic!("the agent ended: {status}");
            }
            agent.try_status().is_ok()
        });
        agent
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The file of its pods.
    pub fn pods_file(&self) -> PathBuf {
        self.dir.path().join("pods.json")
    }

    /// Replaces its pods.
    pub fn set_pods(&self, pods: &[&Pod]) {
        let next = self.dir.path().join("next");
        fs::write(&next, pods::list(pods)).expect("the pods are written");
        fs::rename(next, self.pods_file()).expect("the pods are replaced");
    }

    async fn client(&self) -> Result<ObserverClient<Channel>, Status> {
        let channel = self.endpoint.connect().await;
        channel
            .map(ObserverClient::new)
            .map_err(|error| Status::unavailable(format!("{error:?}")))
    }

    fn try_status(&self) -> Result<v1::GetStatusResponse, Status> {
        self.runtime.block_on(async {
            let answer = self
                .client()
                .await?
                .get_status(v1::GetStatusRequest {})
                .await?;
            Ok(answer.into_inner())
        })
    }

    /// GetStatus.
    pub fn status(&self) -> v1::GetStatusResponse {
        self.try_status().expect("GetStatus")
    }

    /// ListWorkloads.
    pub fn workloads(&self, selector: Option<v1::Selector>) -> Vec<v1::Workload> {
        let answer = self.runtime.block_on(async {
            let request = v1::ListWorkloadsRequest { selector };
            self.client().await?.list_workloads(request).await
        });
        answer.expect("ListWorkloads").into_inner().workloads
    }

    /// ListCapabilities.
    pub fn capabilities(&self) -> Vec<v1::Capability> {
        let answer = self.runtime.block_on(async {
            self.client()
                .await?
                .list_capabilities(v1::ListCapabilitiesRequest {})
                .await
        });
        answer.expect("ListCapabilities").into_inner().capabilities
    }

    /// Explain.
    pub fn explain(&self, request: v1::SubscribeRequest) -> Result<v1::Plan, Status> {
        let answer = self.runtime.block_on(async {
            let request = v1::ExplainRequest {
                request: Some(request),
            };
            self.client().await?.explain(request).await
        });
        answer.map(|answer| answer.into_inner().plan.expect("a plan"))
    }

    /// Waits until what all who are listed need is attached: whoever is told a plan knows that the kernel reports what was asked for before.
    pub fn settle(&self) {
        drop(self.subscribe(v1::SubscribeRequest {
            kinds: vec![v1::Kind::Exit.into()],
            ..v1::SubscribeRequest::default()
        }));
    }

    /// Subscribes.
    pub fn subscribe(&self, request: v1::SubscribeRequest) -> Stream {
        self.try_subscribe(Window::Usual, request)
            .expect("Subscribe")
    }

    /// The same; the agent may refuse.
    pub fn try_subscribe(
        &self,
        window: Window,
        request: v1::SubscribeRequest,
    ) -> Result<Stream, Status> {
        Stream::open(self.runtime.handle(), &self.endpoint, window, request)
    }

    /// Status and body of a path of its HTTP.
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut connection = TcpStream::connect(self.http).expect("the agent's HTTP");
        write!(
            connection,
            "GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n"
        )
        .expect("a request is written");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        (status.expect("a status"), body.to_owned())
    }

    /// What it holds in the kernel.
    pub fn held(&self) -> Held {
        bpf::held(self.pid())
    }

    /// How many programs it has attached.
    pub fn attached(&self) -> usize {
        bpf::count(&self.held(), bpf::Object::Link)
    }

    /// Its threads, with their names.
    pub fn threads(&self) -> Vec<(libc::pid_t, String)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("its threads");
        let named = tasks.flatten().filter_map(|task| {
            // One that ended meanwhile has no name.
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            let id = task.file_name().to_str()?.parse().ok()?;
            Some((id, name.trim_end().to_owned()))
        });
        named.collect()
    }

    /// Makes all its threads as nice as that, from 0 to 19.
    pub fn lower_priority(&self, nice: i32) {
        for (thread, _) in self.threads() {
            // SAFETY: has no preconditions. The thread is of our child, which was not waited for.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, thread as libc::id_t, nice) };
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        assert!(self.ended.is_none(), "the agent has ended");
        // SAFETY: has no preconditions. The process is our child and was not waited for.
        let sent = unsafe { libc::kill(self.pid() as libc::pid_t, signal) };
        assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        let mut status = None;
        eventually("the agent ends", || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        self.ended = status;
        status.expect("it ended")
    }

    /// Ends it, and kills it if it does not end.
    fn stop(&mut self) {
        self.signal(libc::SIGTERM);
        // One that was stopped takes no other signal.
        self.signal(libc::SIGCONT);
        let deadline = Instant::now() + patience();
        while Instant::now() < deadline {
            if let Ok(Some(status)) = self.child.try_wait() {
                self.ended = Some(status);
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        _ = self.child.kill();
        self.ended = self.child.wait().ok();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let held = if self.ended.is_none() {
            self.held()
        } else {
            Held::new()
        };
        if self.ended.is_none() {
            self.stop();
        }
        if std::thread::panicking() {
            eprintln!("--- the agent's log\n{}---", self.log());
            return;
        }
        if let Some(status) = self.ended
            && status.signal() != Some(libc::SIGKILL)
        {
            assert!(
                status.success(),
                "the agent ended with {status}:\n{}",
                self.log()
            );
        }
        eventually("nothing of the agent is left in the kernel", || {
            bpf::alive(&held).is_empty()
        });
    }
}
