//! A NATS server: one that runs already, or one of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::process::{ServerProcess, copy_tree, free_port};

/// The address of a server with JetStream and, when it is the test's own, the process behind it.
pub struct NatsServer {
    /// `nats://127.0.0.1:PORT`, or the address of the one that runs already.
    pub url: String,
    own: Option<Own>,
}

struct Own {
    process: ServerProcess,
    store: PathBuf,
    directory: TempDir,
}

impl NatsServer {
    /// A server that tests may share, each in a namespace of its own: that of `OUTLAST_NATS_URL`, else an own one.
    pub fn any() -> Self {
        std::env::var("OUTLAST_NATS_URL").map_or_else(|_| Self::own(), |url| Self { url, own: None })
    }

    /// A server that the test may stop.
    pub fn own() -> Self {
        Self::own_with(&[])
    }

    /// The same with more options on its command line.
    pub fn own_with(options: &[&str]) -> Self {
        Self::start(tempfile::tempdir().unwrap(), None, options)
    }

    /// The same with a configuration file.
    pub fn own_with_config(text: &str) -> Self {
        Self::configured(None, text)
    }

    /// The same with its store in another place.
    pub fn own_at(store: &Path, text: &str) -> Self {
        Self::configured(Some(store.to_owned()), text)
    }

    fn configured(store: Option<PathBuf>, text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nats.conf");
        fs::write(&path, text).unwrap();
        Self::start(directory, store, &["-c", &path.display().to_string()])
    }

    fn start(directory: TempDir, store: Option<PathBuf>, options: &[&str]) -> Self {
        let program = std::env::var_os("OUTLAST_NATS_SERVER").unwrap_or_else(|| "nats-server".into());
        let (port, store) = (free_port(), store.unwrap_or_else(|| directory.path().join("store")));
        let mut command = Command::new(program);
        command.args(options).args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"]).arg(&store);
        let process = ServerProcess::start(command, port, "-KILL");
        Self { url: format!("nats://127.0.0.1:{port}"), own: Some(Own { process, store, directory }) }
    }

    fn own_mut(&mut self) -> &mut Own {
        self.own.as_mut().expect("only an own server is stopped")
    }

    /// Has the server read another configuration.
    pub fn configure(&mut self, text: &str) {
        let own = self.own_mut();
        fs::write(own.directory.path().join("nats.conf"), text).unwrap();
        own.process.signal("-HUP");
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        self.own_mut().process.kill();
    }

    /// Ends it as an operator would.
    pub fn stop(&mut self) {
        self.own_mut().process.end_by("-TERM");
    }

    /// Starts it again at the same address.
    pub fn up(&mut self) {
        self.own_mut().process.up();
    }

    /// Has it stand still, or go on: `-STOP`, `-CONT`.
    pub fn signal(&self, signal: &str) {
        self.own.as_ref().expect("only an own server is signalled").process.signal(signal);
    }

    /// Deletes the store of a stopped server.
    pub fn wipe(&mut self) {
        fs::remove_dir_all(&self.own_mut().store).unwrap();
    }

    /// Copies the store, also of a running server, as a snapshot of its disk would.
    pub fn save(&mut self) {
        let own = self.own_mut();
        copy_tree(&own.store, &own.directory.path().join("saved"));
    }

    /// Puts the copy in the place of the store of a stopped server.
    pub fn roll_back(&mut self) {
        let own = self.own_mut();
        copy_tree(&own.directory.path().join("saved"), &own.store);
    }

    /// Where JetStream stores.
    pub fn store(&self) -> &Path {
        &self.own.as_ref().expect("only an own server's store is at hand").store
    }
}
