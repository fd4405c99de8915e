//! As whom to connect: by the options, or by what stands before the `@` of an address.

use async_nats::{ConnectOptions, ServerAddr};

use super::options::{Auth, JetStreamOptions};
use crate::Error;
use outlast_core::Reason;

/// Where to connect and as whom.
pub(super) struct Destination {
    /// Without credentials: the library does not use them, and it logs addresses.
    pub(super) addresses: Vec<ServerAddr>,
    pub(super) auth: Auth,
}

impl Destination {
    /// Takes the addresses apart. What the options say goes before what an address says.
    pub(super) fn of(options: &JetStreamOptions) -> Result<Self, Error> {
        let mut addresses = Vec::with_capacity(options.servers.len());
        let mut named = None;
        for server in &options.servers {
            let (address, auth) = split(server)?;
            addresses.push(address);
            match (&named, auth) {
                (Some(first), Some(other)) if *first != other => {
                    let advice = "the addresses name different credentials: give one user for all servers";
                    return Err(Error::unusable(advice));
                }
                (_, Some(auth)) => named = Some(auth),
                (_, None) => {}
            }
        }
        let auth = match &options.auth {
            Auth::None => named.unwrap_or_default(),
            given => given.clone(),
        };
        Ok(Self { addresses, auth })
    }
}

/// `scheme://user:password@host` or `scheme://token@host`, both percent-encoded.
fn split(server: &str) -> Result<(ServerAddr, Option<Auth>), Error> {
    let unusable = || {
        let advice = "an address of a server is not valid: write it like nats://host:4222 or tls://host:4222";
        Error::unusable(advice)
    };
    // The library would take `nats:/host` for a host of the name `nats`.
    if server.contains(":/") && !server.contains("://") {
        return Err(unusable());
    }
    let address: ServerAddr = server.parse().map_err(|_| unusable())?;
    if address.host().is_empty() {
        return Err(unusable());
    }
    let auth = match (address.username(), address.password()) {
        (None, None) => return Ok((address, None)),
        (Some(token), None) => Auth::Token(decoded(token)),
        (user, Some(password)) => {
            Auth::UserPassword { user: decoded(user.unwrap_or_default()), password: decoded(password) }
        }
    };
    let mut bare = address.into_inner();
    bare.set_username("").and_then(|()| bare.set_password(None)).map_err(|()| unusable())?;
    Ok((ServerAddr::from_url(bare).map_err(|_| unusable())?, Some(auth)))
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// Reads what has to be read, and checks what can be checked without a server.
pub(super) async fn apply(auth: &Auth, settings: ConnectOptions) -> Result<ConnectOptions, Error> {
    Ok(match auth {
        Auth::None => settings,
        Auth::CredentialsFile(path) => settings.credentials_file(path).await.map_err(|error| {
            let path = path.display();
            let text =
                format!("the credentials file {path} cannot be used: {error}: it must hold a user's JWT and nkey seed");
            Error::unusable(Reason::because(text, error))
        })?,
        Auth::NkeySeed(seed) => settings.nkey(seed.trim().to_owned()),
        Auth::UserPassword { user, password } => settings.user_and_password(user.clone(), password.clone()),
        Auth::Token(token) => settings.token(token.clone()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth_of(servers: &[&str], auth: Auth) -> Result<Destination, Error> {
        let servers = servers.iter().map(|&server| server.to_owned()).collect();
        Destination::of(&JetStreamOptions { servers, auth, ..JetStreamOptions::new("") })
    }

    #[test]
    fn credentials_of_an_address_are_taken_out_of_it() {
        let found = auth_of(&["nats://ann:p%40ss%3A@a:4222", "tls://b"], Auth::None).unwrap();
        assert_eq!(found.auth, Auth::UserPassword { user: "ann".to_owned(), password: "p@ss:".to_owned() });
        let addresses: Vec<_> = found.addresses.iter().map(ServerAddr::as_url_str).collect();
        assert_eq!(addresses, ["nats://a:4222", "tls://b"]);
        assert_eq!(auth_of(&["nats://s3cret@a"], Auth::None).unwrap().auth, Auth::Token("s3cret".to_owned()));
    }

    #[test]
    fn options_go_before_addresses_and_addresses_agree() {
        let token = Auth::Token("t".to_owned());
        assert_eq!(auth_of(&["nats://ann:pass@a"], token.clone()).unwrap().auth, token);
        assert!(auth_of(&["nats://t@a", "nats://t@b"], Auth::None).is_ok());
        assert!(matches!(auth_of(&["nats://t@a", "nats://u@b"], Auth::None), Err(Error::Unusable(_))));
    }

    #[test]
    fn an_address_that_is_not_valid_is_not_repeated() {
        for wrong in [
            "nats://ann:s3cret@",
            "http://ann:s3cret@a",
            "nats://ann:s3cret@a:port",
            "nats:/a",
            "nats://",
            "nats:///a",
            "",
        ] {
            let Err(Error::Unusable(why)) = auth_of(&[wrong], Auth::None) else { panic!("{wrong} is taken") };
            assert!(!why.contains("s3cret"), "{why}");
        }
    }
}
