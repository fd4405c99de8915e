//! Servers that a test may kill: its own Postgres and its own nats-server, on 127.0.0.1.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A server process, its address and its data.
pub(crate) struct Server {
    command: Command,
    process: Option<Child>,
    pub(crate) url: String,
    directory: tempfile::TempDir,
    port: u16,
}

impl Server {
    /// A nats-server with files.
    pub(crate) fn nats() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("store");
        Self::nats_on(directory, &store, "")
    }

    /// The same with its files in another place and more in its configuration.
    pub(crate) fn nats_with(store: &Path, more: &str) -> Self {
        Self::nats_on(tempfile::tempdir().unwrap(), store, more)
    }

    fn nats_on(directory: tempfile::TempDir, store: &Path, more: &str) -> Self {
        let binary = std::env::var("OUTLAST_NATS_SERVER")
            .expect("set OUTLAST_NATS_SERVER to a nats-server program, or run ./dev test, which gets one");
        let port = free_port();
        let config = directory.path().join("nats.conf");
        let text = format!("listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: {store:?} }}\n{more}");
        fs::write(&config, text).unwrap();
        let mut command = Command::new(binary);
        command.arg("-c").arg(config);
        Self::start(command, format!("nats://127.0.0.1:{port}"), (directory, port))
    }

    /// A Postgres with its real fsync.
    pub(crate) fn postgres() -> Self {
        let bin = std::env::var("OUTLAST_POSTGRES_BIN")
            .expect("set OUTLAST_POSTGRES_BIN to the programs of Postgres, or run ./dev test, which finds them");
        let bin = PathBuf::from(bin);
        let (directory, port) = (tempfile::tempdir().unwrap(), free_port());
        let data = directory.path().join("db");
        let owner = unprivileged(directory.path());
        let mut initdb = as_owner(owner, &bin.join("initdb"));
        let initdb =
            initdb.arg("-D").arg(&data).args(["-U", "outlast", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8"]);
        assert!(initdb.current_dir(directory.path()).stdout(Stdio::null()).status().unwrap().success());
        let mut command = as_owner(owner, &bin.join("postgres"));
        command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        command.args(["-c", "unix_socket_directories=", "-c", "max_connections=60"]).current_dir(directory.path());
        Self::start(command, format!("postgres://outlast@127.0.0.1:{port}/postgres"), (directory, port))
    }

    fn start(mut command: Command, url: String, (directory, port): (tempfile::TempDir, u16)) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = Self { command, process: None, url, directory, port };
        server.up();
        server
    }

    /// Starts it again, and waits until it takes connections.
    pub(crate) fn up(&mut self) {
        self.process = Some(self.command.spawn().unwrap());
        for _ in 0..400 {
            if std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("{} did not come up", self.url);
    }

    /// The hardest way to end it.
    pub(crate) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Ends Postgres at once, children included, as a crash of the machine would.
    pub(crate) fn stop_immediately(&mut self) {
        if let Some(mut process) = self.process.take() {
            let quit = Command::new("kill").arg("-QUIT").arg(process.id().to_string()).status().unwrap();
            assert!(quit.success());
            process.wait().unwrap();
        }
    }

    /// Keeps a copy of the data of a Postgres that is not running, or puts it back.
    pub(crate) fn copy_data(&self, put_back: bool) {
        assert!(self.process.is_none());
        let (data, copy) = (self.directory.path().join("db"), self.directory.path().join("copy"));
        let (from, to) = if put_back { (copy, data) } else { (data, copy) };
        let _replaced = fs::remove_dir_all(&to);
        // Not as `copy_tree` does it: its owner must stay.
        assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
    }

    /// Stops all its processes, or lets them go on: `-STOP`, `-CONT`.
    pub(crate) fn signal(&self, signal: &str) {
        let process = self.process.as_ref().unwrap().id().to_string();
        let children = Command::new("ps").args(["-o", "pid=", "--ppid", &process]).output().unwrap().stdout;
        let children = String::from_utf8(children).unwrap();
        let all = children.split_whitespace().chain([&process[..]]);
        // A child may have ended by itself meanwhile.
        let _sent = Command::new("kill").arg(signal).args(all).stderr(Stdio::null()).status().unwrap();
    }

    /// What JetStream has stored.
    pub(crate) fn nats_store(&self) -> PathBuf {
        self.directory.path().join("store")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _gone = Command::new("kill").arg("-QUIT").arg(process.id().to_string()).status();
            let _ended = process.wait();
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// Postgres refuses root: then its directory is given to another user, whose number is returned.
fn unprivileged(directory: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    let me = fs::metadata("/proc/self").unwrap().uid();
    if me != 0 {
        return None;
    }
    let user = Command::new("id").args(["-u", "postgres"]).output().unwrap();
    let user = String::from_utf8(user.stdout).unwrap().trim().parse().unwrap_or(65_534);
    std::os::unix::fs::chown(directory, Some(user), Some(user)).unwrap();
    Some(user)
}

fn as_owner(owner: Option<u32>, program: &Path) -> Command {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(program);
    if let Some(user) = owner {
        command.uid(user).gid(user);
    }
    command
}

/// Copies a directory tree.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (entry, to) = (entry.unwrap(), to.to_owned());
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
