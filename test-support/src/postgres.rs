//! A Postgres of the test's own.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::Authority;
use crate::process::{ServerProcess, copy_tree, free_port};

/// Passwords let in the superuser, certificates the role of their name, which may only come encrypted.
const ADMISSION: &str =
    "hostssl all certified 127.0.0.1/32 cert\nhost all certified all reject\nhost all all 127.0.0.1/32 scram-sha-256\n";
const PASSWORD: &str = "s3cret";

/// A server with its real fsync, and its data.
pub struct PostgresServer {
    /// The superuser's URL.
    pub url: String,
    process: ServerProcess,
    directory: TempDir,
}

/// A cluster of databases that was made and is not served yet.
struct Prepared {
    directory: TempDir,
    bin: PathBuf,
    /// Whom the files belong to; `None` is whoever runs the test.
    owner: Option<u32>,
}

impl PostgresServer {
    /// One that lets everybody in.
    pub fn trusting() -> Self {
        let prepared = Prepared::new(&["--auth=trust"]);
        prepared.serve(&["max_connections=60"], "outlast")
    }

    /// One that asks for a password and does not encrypt.
    pub fn plain() -> Self {
        Prepared::with_password().serve(&["ssl=off"], &format!("outlast:{PASSWORD}"))
    }

    /// One that asks for a password or a certificate, and encrypts with a certificate for `host`.
    pub fn certified(authority: &Authority, host: &str) -> Self {
        let (prepared, files) = (Prepared::with_password(), authority.certify(host));
        let sources =
            [("server.crt", files.certificate), ("server.key", files.key), ("authority.crt", authority.root())];
        for (name, from) in sources {
            let to = prepared.data().join(name);
            fs::copy(from, &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
            chown(&to, prepared.owner, prepared.owner).unwrap();
        }
        let names = ["ssl=on", "ssl_cert_file=server.crt", "ssl_key_file=server.key", "ssl_ca_file=authority.crt"];
        prepared.serve(&names, &format!("outlast:{PASSWORD}"))
    }

    /// The URL with these parameters.
    pub fn url_with(&self, query: &str) -> String {
        format!("{}?{query}", self.url)
    }

    /// Ends it at once, children included, as a crash of the machine would.
    pub fn stop_immediately(&mut self) {
        self.process.end_by("-QUIT");
    }

    /// Starts it again, and waits until it takes connections.
    pub fn up(&mut self) {
        self.process.up();
    }

    /// Has all its processes stand still, or go on: `-STOP`, `-CONT`.
    pub fn signal(&self, signal: &str) {
        self.process.signal(signal);
    }

    /// Keeps a copy of the data of a stopped server, or puts it back.
    pub fn copy_data(&self, put_back: bool) {
        assert!(!self.process.is_running());
        let (data, kept) = (self.directory.path().join("db"), self.directory.path().join("copy"));
        if put_back { copy_tree(&kept, &data) } else { copy_tree(&data, &kept) }
    }
}

impl Prepared {
    fn with_password() -> Self {
        let prepared = Self::new(&["--auth=scram-sha-256", "--no-sync", "--pwfile=password"]);
        fs::write(prepared.data().join("pg_hba.conf"), ADMISSION).unwrap();
        prepared
    }

    fn new(options: &[&str]) -> Self {
        let bin = std::env::var_os("OUTLAST_POSTGRES_BIN")
            .expect("set OUTLAST_POSTGRES_BIN to the programs of Postgres, or run ./dev test, which finds them");
        let directory = tempfile::tempdir().unwrap();
        let password = directory.path().join("password");
        fs::write(&password, PASSWORD).unwrap();
        let owner = unprivileged(&[directory.path(), &password]);
        let prepared = Self { directory, bin: bin.into(), owner };
        let mut initdb = prepared.command("initdb");
        initdb.args(["-U", "outlast", "--encoding=UTF8", "--locale=C.UTF-8"]).args(options);
        assert!(initdb.stdout(Stdio::null()).status().unwrap().success());
        prepared
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("db")
    }

    /// A program of Postgres on these data, in the directory and as the owner of them.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.arg("-D").arg(self.data()).current_dir(self.directory.path());
        if let Some(user) = self.owner {
            command.uid(user).gid(user);
        }
        command
    }

    fn serve(self, settings: &[&str], login: &str) -> PostgresServer {
        let port = free_port();
        let mut command = self.command("postgres");
        command.args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]);
        for setting in settings {
            command.args(["-c", setting]);
        }
        let url = format!("postgres://{login}@127.0.0.1:{port}/postgres");
        PostgresServer { url, process: ServerProcess::start(command, port, "-QUIT"), directory: self.directory }
    }
}

/// Postgres refuses root: then its files are given to another user, whose number is returned.
fn unprivileged(files: &[&Path]) -> Option<u32> {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let user = Command::new("id").args(["-u", "postgres"]).output().unwrap();
    let user = String::from_utf8(user.stdout).unwrap().trim().parse().unwrap_or(65_534);
    for file in files {
        chown(file, Some(user), Some(user)).unwrap();
    }
    Some(user)
}
