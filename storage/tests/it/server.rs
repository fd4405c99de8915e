//! A Postgres of the test's own on 127.0.0.1, with a password and, when wanted, a certificate.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::authority::Authority;

const UP_WITHIN: Duration = Duration::from_secs(30);
/// Passwords let in the superuser, certificates the role of their name, which may only come encrypted.
const ADMISSION: &str =
    "hostssl all certified 127.0.0.1/32 cert\nhost all certified all reject\nhost all all 127.0.0.1/32 scram-sha-256\n";

pub(crate) struct Server {
    process: Child,
    pub(crate) port: u16,
    _directory: tempfile::TempDir,
}

impl Server {
    /// One that encrypts, with a certificate for `host`.
    pub(crate) fn certified(authority: &Authority, host: &str) -> Self {
        let files = authority.certify(host);
        Self::start(&|data, owner| {
            let sources = [("server.crt", files.certificate.clone()), ("server.key", files.key.clone())];
            for (name, from) in sources.into_iter().chain([("authority.crt", authority.root())]) {
                let to = data.join(name);
                fs::copy(from, &to).unwrap();
                fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
                chown(&to, owner, owner).unwrap();
            }
            let names = ["ssl_cert_file=server.crt", "ssl_key_file=server.key", "ssl_ca_file=authority.crt"];
            ["ssl=on"].into_iter().chain(names).collect()
        })
    }

    /// One that does not.
    pub(crate) fn plain() -> Self {
        Self::start(&|_, _| vec!["ssl=off"])
    }

    fn start(settings: &dyn Fn(&Path, Option<u32>) -> Vec<&'static str>) -> Self {
        let bin = std::env::var("OUTLAST_POSTGRES_BIN")
            .expect("set OUTLAST_POSTGRES_BIN to the programs of Postgres, or run ./dev test, which finds them");
        let bin = PathBuf::from(bin);
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (data, password) = (directory.path().join("db"), directory.path().join("password"));
        fs::write(&password, "s3cret\n").unwrap();
        let owner = unprivileged(directory.path());
        let mut initdb = as_owner(owner, &bin.join("initdb"));
        initdb.args(["-U", "outlast", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]);
        initdb.arg("-D").arg(&data).arg("--pwfile").arg(&password);
        assert!(initdb.current_dir(directory.path()).stdout(Stdio::null()).status().unwrap().success());
        fs::write(data.join("pg_hba.conf"), ADMISSION).unwrap();
        let mut command = as_owner(owner, &bin.join("postgres"));
        command.arg("-D").arg(&data).args(["-p", &port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        command.args(["-c", "unix_socket_directories="]).current_dir(directory.path());
        for setting in settings(&data, owner) {
            command.args(["-c", setting]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self { process: command.spawn().unwrap(), port, _directory: directory };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < UP_WITHIN, "Postgres did not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// The superuser's URL with these parameters.
    pub(crate) fn url(&self, query: &str) -> String {
        format!("postgres://outlast:s3cret@127.0.0.1:{}/postgres?{query}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _told = Command::new("kill").arg("-QUIT").arg(self.process.id().to_string()).status();
        let _ended = self.process.wait();
    }
}

/// Postgres refuses root: then its directory is given to another user, whose number is returned.
fn unprivileged(directory: &Path) -> Option<u32> {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let user = Command::new("id").args(["-u", "postgres"]).output().unwrap();
    let user = String::from_utf8(user.stdout).unwrap().trim().parse().unwrap_or(65_534);
    for path in [directory.to_owned(), directory.join("password")] {
        chown(path, Some(user), Some(user)).unwrap();
    }
    Some(user)
}

fn as_owner(owner: Option<u32>, program: &Path) -> Command {
    let mut command = Command::new(program);
    if let Some(user) = owner {
        command.uid(user).gid(user);
    }
    command
}
