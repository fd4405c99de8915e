//! A NATS server for a test: one that runs already, or one that the test starts and ends itself.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use outlast_broker::jetstream::{JetStreamBroker, JetStreamOptions};
use tempfile::TempDir;

const HELP: &str = "these tests need a NATS server of version 2.12 or later: set OUTLAST_NATS_URL to the address of a \
                    running one with JetStream, or OUTLAST_NATS_SERVER to its program, or put `nats-server` on the PATH";

/// The address of a server and, when it is the test's own, the process behind it.
pub(crate) struct Server {
    pub(crate) url: String,
    own: Option<Own>,
}

struct Own {
    child: Child,
    directory: TempDir,
    port: u16,
    options: Vec<String>,
}

impl Drop for Own {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn program() -> PathBuf {
    std::env::var_os("OUTLAST_NATS_SERVER").map_or_else(|| PathBuf::from("nats-server"), PathBuf::from)
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn spawn(port: u16, store: &std::path::Path, more: &[String]) -> Child {
    let mut command = Command::new(program());
    command.args(more).args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"]).arg(store);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap_or_else(|error| panic!("{HELP} ({error})"));
    let begun = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the server did not start: {HELP}");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

impl Server {
    /// A server that tests may share: every test uses a namespace of its own.
    pub(crate) fn any() -> Self {
        match std::env::var("OUTLAST_NATS_URL") {
            Ok(url) => Self { url, own: None },
            Err(_) => Self::own(),
        }
    }

    /// A server that the test may kill.
    pub(crate) fn own() -> Self {
        Self::own_with(&[])
    }

    /// The same with more options on its command line.
    pub(crate) fn own_with(more: &[&str]) -> Self {
        Self::own_at(tempfile::tempdir().unwrap(), more.iter().map(|&option| option.to_owned()).collect())
    }

    /// The same with its store below a directory.
    pub(crate) fn own_in(directory: &std::path::Path) -> Self {
        Self::own_at(tempfile::tempdir_in(directory).unwrap(), Vec::new())
    }

    /// The same with a configuration file.
    pub(crate) fn own_with_config(text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nats.conf");
        std::fs::write(&path, text).unwrap();
        Self::own_at(directory, vec!["-c".to_owned(), path.display().to_string()])
    }

    fn own_at(directory: TempDir, options: Vec<String>) -> Self {
        let port = free_port();
        let child = spawn(port, &directory.path().join("store"), &options);
        Self { url: format!("nats://127.0.0.1:{port}"), own: Some(Own { child, directory, port, options }) }
    }

    /// Has the server read another configuration.
    pub(crate) fn configure(&mut self, text: &str) {
        let own = self.own_mut();
        std::fs::write(own.directory.path().join("nats.conf"), text).unwrap();
        let told = Command::new("kill").args(["-HUP", &own.child.id().to_string()]).status().unwrap();
        assert!(told.success());
    }

    fn own_mut(&mut self) -> &mut Own {
        self.own.as_mut().expect("only an own server is stopped")
    }

    /// Ends the server as a power cut would.
    pub(crate) fn kill(&mut self) {
        let own = self.own_mut();
        own.child.kill().unwrap();
        own.child.wait().unwrap();
    }

    /// Ends the server as an operator would.
    pub(crate) fn stop(&mut self) {
        let own = self.own_mut();
        let ended = Command::new("kill").args(["-TERM", &own.child.id().to_string()]).status().unwrap();
        assert!(ended.success());
        own.child.wait().unwrap();
    }

    /// Starts it again at the same address.
    pub(crate) fn start(&mut self) {
        let own = self.own_mut();
        own.child = spawn(own.port, &own.directory.path().join("store"), &own.options);
    }

    pub(crate) fn wipe(&mut self) {
        self.remove("store");
    }

    /// Deletes a folder of a stopped server.
    pub(crate) fn remove(&mut self, folder: &str) {
        std::fs::remove_dir_all(self.own_mut().directory.path().join(folder)).unwrap();
    }

    /// Copies the store, of a stopped server.
    pub(crate) fn save(&mut self) {
        self.copy("store", "saved");
    }

    /// Puts the copy in the place of the store.
    pub(crate) fn roll_back(&mut self) {
        self.wipe();
        self.copy("saved", "store");
    }

    /// Copies a folder of a stopped server.
    pub(crate) fn copy(&mut self, from: &str, to: &str) {
        let root = self.own_mut().directory.path().to_owned();
        let copied = Command::new("cp").arg("-a").arg(root.join(from)).arg(root.join(to)).status().unwrap();
        assert!(copied.success());
    }

    pub(crate) fn options(&self, namespace: &str) -> JetStreamOptions {
        JetStreamOptions { namespace: namespace.to_owned(), ..JetStreamOptions::new(&self.url) }
    }

    pub(crate) async fn broker(&self, namespace: &str) -> JetStreamBroker {
        JetStreamBroker::connect(self.options(namespace)).await.unwrap()
    }
}
