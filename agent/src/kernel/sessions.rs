//! TCP sessions that the kernel half remembers: those that are open before anyone listens, and reports on those that go on.

use std::time::Duration;

use aya::{
    Pod,
    maps::{Array, HashMap, MapError},
};
use dinle_ebpf::tcp::{SHARES, Socket};

use super::{Programs, boot_ns, causes, maps::empty};

/// Lets aya pass a wire type by value.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct SocketPod(Socket);

// SAFETY: `#[repr(C)]` integers without padding (zerocopy's derives check it), valid for any bytes.
unsafe impl Pod for SocketPod {}

fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

impl Programs {
    /// Forgets all sessions: nobody listens to any.
    pub fn forget_sessions(&mut self) -> Result<(), String> {
        empty::<SocketPod>(&mut self.ebpf, "SOCKETS")
    }

    /// Takes note of the sessions in scope that are open already.
    pub fn find_sessions(&mut self) -> Result<(), String> {
        self.iterate("tcp")?;
        self.call("find_sessions", 0..u64::from(SHARES))
    }

    /// How many began while the kernel half could not remember more, since it was loaded.
    pub fn unremembered_sessions(&self) -> Result<u64, String> {
        let failed = |error: MapError| format!("UNREMEMBERED cannot be read ({})", causes(&error));
        let Some(map) = self.ebpf.map("UNREMEMBERED") else {
            return Err("the object has no map UNREMEMBERED".to_owned());
        };
        Array::try_from(map)
            .and_then(|map: Array<_, u64>| map.get(&0, 0))
            .map_err(failed)
    }

    /// How long to wait between two reports on a session that goes on.
    pub fn set_session_interval(&mut self, interval: Duration) -> Result<(), String> {
        let failed =
            |error: MapError| format!("SESSION_INTERVAL cannot be written ({})", causes(&error));
        let Some(map) = self.ebpf.map_mut("SESSION_INTERVAL") else {
            return Err("the object has no map SESSION_INTERVAL".to_owned());
        };
        let mut map = Array::try_from(map).map_err(failed)?;
        map.set(0, nanoseconds(interval), 0).map_err(failed)
    }

    /// Makes the kernel half report on the sessions of which nothing was told for so long.
    pub fn report_sessions(&mut self, interval: Duration) -> Result<(), String> {
        let failed = |error: MapError| format!("SOCKETS cannot be read ({})", causes(&error));
        let Some(map) = self.ebpf.map("SOCKETS") else {
            return Err("the object has no map SOCKETS".to_owned());
        };
        let sockets = HashMap::<_, u64, SocketPod>::try_from(map).map_err(failed)?;
        let due = boot_ns().saturating_sub(nanoseconds(interval));
        // What is removed meanwhile has ended and needs no report. The walk then may begin again: the kernel half looks whether it is due.
        let mut addresses = Vec::new();
        for entry in sockets.iter() {
            let (address, SocketPod(socket)) = entry.map_err(failed)?;
            if socket.told_boot_ns <= due {
                addresses.push(address);
            }
        }
        self.call("report_session", addresses)
    }
}
