//! A server process that a test starts, stops and ends by its number.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A busy machine starts a server late, and never so late.
const UP_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A server on 127.0.0.1; it is ended when this is dropped.
pub(crate) struct ServerProcess {
    command: Command,
    port: u16,
    child: Option<Child>,
    /// What ends it and its children.
    end: &'static str,
}

impl ServerProcess {
    /// Starts it, and waits until it takes connections.
    pub(crate) fn start(mut command: Command, port: u16, end: &'static str) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut process = Self { command, port, child: None, end };
        process.up();
        process
    }

    /// Starts it again, and waits until it takes connections.
    pub(crate) fn up(&mut self) {
        let program = Path::new(self.command.get_program()).display().to_string();
        self.child = Some(self.command.spawn().unwrap_or_else(|error| panic!("{program} did not start: {error}")));
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(begun.elapsed() < UP_WITHIN, "{program} did not come up");
            sleep(LOOK_EVERY);
        }
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Ends it by a signal, and waits for its end.
    pub(crate) fn end_by(&mut self, signal: &str) {
        if let Some(mut child) = self.child.take() {
            send(signal, &[child.id().to_string()]);
            child.wait().unwrap();
        }
    }

    /// Sends a signal to it and its children.
    pub(crate) fn signal(&self, signal: &str) {
        let process = self.child.as_ref().expect("it runs").id().to_string();
        let children = Command::new("ps").args(["-o", "pid=", "--ppid", &process]).output().unwrap().stdout;
        let children = String::from_utf8(children).unwrap();
        let all: Vec<String> = children.split_whitespace().map(str::to_owned).chain([process]).collect();
        send(signal, &all);
    }

    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some()
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            send(self.end, &[child.id().to_string()]);
            let _ended = child.wait();
        }
    }
}

/// A process may have ended by itself meanwhile.
fn send(signal: &str, to: &[String]) {
    let _sent = Command::new("kill").arg(signal).args(to).stderr(Stdio::null()).status();
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Copies a directory with the owners of its files; what was in the other place is replaced.
pub fn copy_tree(from: &Path, to: &Path) {
    let _replaced = std::fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}
