//! How to reach the servers, as whom, and what the streams are like.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use outlast_core::RefusedOption;

/// A shorter wait ends while a worker that lives is being heard; after a longer one the work of a dead one is a day late.
const ACK_WAITS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);
/// Copies that a cluster of servers keeps.
const REPLICAS: RangeInclusive<usize> = 1..=5;

/// How to reach a NATS server, and what to keep there.
#[derive(Clone)]
pub struct JetStreamOptions {
    /// Addresses of the servers, for example `nats://127.0.0.1:4222`; one `tls://` among them demands encryption of all.
    pub servers: Vec<String>,
    /// Keeps deployments apart that share servers: 1 to 64 letters, digits, `_` and `-`.
    pub namespace: String,
    /// As whom.
    pub auth: Auth,
    /// How connections are encrypted.
    pub tls: Tls,
    /// How long a worker may be silent before its item is given to another. Three times within it the worker says that it
    /// still works. A consumer that exists keeps its own.
    pub ack_wait: Duration,
    /// Keep queued work in the server's memory and not in its files.
    pub memory_storage: bool,
    /// The consumer of a tag that nobody pulls from and that has no work is deleted after this time.
    pub unused_tag_kept: Duration,
    /// Copies of the streams in a cluster of servers: 1, 3 or 5.
    pub replicas: usize,
}

/// As whom to connect.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Auth {
    /// As nobody, or as an address says: `nats://user:password@host` or `nats://token@host`, percent-encoded.
    #[default]
    None,
    /// With a file that holds a JWT and an nkey seed.
    CredentialsFile(PathBuf),
    /// With the seed of an nkey.
    NkeySeed(String),
    /// With a name and a password.
    UserPassword {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
    /// With a token.
    Token(String),
}

/// How connections are encrypted; rustls does it.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Refuse servers that do not offer it; whoever names certificates here refuses them too.
    pub required: bool,
    /// PEM files of the authorities to trust; without any, those of the system.
    pub root_certificates: Vec<PathBuf>,
    /// PEM files of this client's certificate and key.
    pub client_certificate: Option<ClientCertificate>,
}

/// PEM files by which the server knows this client.
#[derive(Clone, Debug)]
pub struct ClientCertificate {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl JetStreamOptions {
    /// Refuses values that cannot work.
    pub(super) fn check(&self) -> Result<(), RefusedOption> {
        // Named one by one, so that a new option is not forgotten here. Names and addresses are checked where they are used.
        let Self {
            servers: _,
            namespace: _,
            auth: _,
            tls: _,
            ack_wait,
            memory_storage: _,
            unused_tag_kept: _,
            replicas,
        } = self;
        RefusedOption::unless_in("JetStreamOptions::ack_wait", ack_wait, ACK_WAITS)?;
        RefusedOption::unless_in("JetStreamOptions::replicas", replicas, REPLICAS)
    }

    /// The server at `url`, with the defaults: namespace `outlast`, no authentication, 8 s, files, one copy.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            servers: vec![url.into()],
            namespace: "outlast".to_owned(),
            auth: Auth::None,
            tls: Tls::default(),
            ack_wait: Duration::from_secs(8),
            memory_storage: false,
            unused_tag_kept: Duration::from_secs(24 * 3_600),
            replicas: 1,
        }
    }

    /// How connections of this namespace call themselves.
    pub(crate) fn client_name(&self) -> String {
        format!("outlast {}", self.namespace)
    }
}

impl fmt::Debug for JetStreamOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What stands before the @ of an address may be a password.
        let bare = |url: &String| url.rsplit_once('@').map_or_else(|| url.clone(), |(_, host)| format!("***@{host}"));
        f.debug_struct("JetStreamOptions")
            .field("servers", &self.servers.iter().map(bare).collect::<Vec<_>>())
            .field("namespace", &self.namespace)
            .field("auth", &self.auth)
            .field("tls", &self.tls)
            .field("ack_wait", &self.ack_wait)
            .field("memory_storage", &self.memory_storage)
            .field("unused_tag_kept", &self.unused_tag_kept)
            .field("replicas", &self.replicas)
            .finish()
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::CredentialsFile(path) => f.debug_tuple("CredentialsFile").field(path).finish(),
            Self::NkeySeed(_) => f.write_str("NkeySeed(***)"),
            Self::UserPassword { user, .. } => write!(f, "UserPassword({user:?}, ***)"),
            Self::Token(_) => f.write_str("Token(***)"),
        }
    }
}
