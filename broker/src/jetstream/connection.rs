//! The connection to the servers: made once, kept for ever, and what is known of its state.

use std::time::Duration;

use async_nats::rustls::ClientConfig;
use async_nats::{Client, ConnectOptions, Event};
use tokio::sync::watch;

use super::credentials::{self, Destination};
use super::options::{JetStreamOptions, Tls};
use super::{connect_failure, tls};
use crate::Error;
use outlast_core::Reason;

/// Oldest server that has all that is used here.
const VERSION_MIN: (u64, u64) = (2, 12);
/// Most bytes of a message beside its payload: names, ids, headers.
pub(crate) const NAMES_BYTES_MAX: usize = 8 << 10;
/// Longest wait for the first connection: long enough for a server across an ocean, short enough for a typing error in an address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest pause between attempts to connect again: a server that is back is in use a second later.
const RECONNECT_DELAY_MAX: Duration = Duration::from_millis(1_000);
/// A server that answers no ping for two of these is given up.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Whether the connection stands, and how often it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    /// Whether it stands.
    pub(crate) up: bool,
    /// How often it was made.
    pub(crate) connects: u64,
}

/// Connects, refusing servers that are too old.
pub(crate) async fn connect(options: &JetStreamOptions) -> Result<(Client, watch::Receiver<Link>), Error> {
    let (link, mut watch) = watch::channel(Link::default());
    let events = move |event| {
        note(&link, &event);
        std::future::ready(())
    };
    let Destination { addresses, auth } = Destination::of(options)?;
    let settings = credentials::apply(&auth, settings(options)).await?;
    let settings = if tls::is_demanded(&options.tls, &addresses) {
        settings.require_tls(true).tls_client_config(client_config(&options.tls).await?)
    } else {
        settings
    };
    let place = addresses.iter().map(|address| address.as_url_str()).collect::<Vec<_>>().join(", ");
    let client = tokio::time::timeout(CONNECT_TIMEOUT, settings.event_callback(events).connect(addresses))
        .await
        .map_err(|_| connect_failure::no_answer(&place, CONNECT_TIMEOUT))?
        .map_err(|error| connect_failure::refusal(error, &auth, &place))?;
    let info = client.server_info();
    check_version(&info.version)?;
    check_payload(info.max_payload)?;
    // The state of the connection is told separately. Its sender lives as long as the client.
    let _up = tokio::time::timeout(CONNECT_TIMEOUT, watch.wait_for(|link| link.up)).await.is_ok();
    Ok((client, watch))
}

async fn client_config(tls: &Tls) -> Result<ClientConfig, Error> {
    let tls = tls.clone();
    let read = tokio::task::spawn_blocking(move || tls::client_config(&tls)).await;
    read.map_err(|error| {
        Error::unavailable(Reason::because(format!("the certificates were not read: {error}"), error))
    })?
}

fn settings(options: &JetStreamOptions) -> ConnectOptions {
    ConnectOptions::new()
        .name(options.client_name())
        .connection_timeout(CONNECT_TIMEOUT)
        .request_timeout(Some(CONNECT_TIMEOUT))
        .ping_interval(PING_INTERVAL)
        .max_reconnects(None)
        .reconnect_delay_callback(|attempts| {
            let delay = Duration::from_millis(10) * 2_u32.saturating_pow(u32::try_from(attempts).unwrap_or(u32::MAX));
            if attempts == 0 { Duration::ZERO } else { delay.min(RECONNECT_DELAY_MAX) }
        })
}

fn note(link: &watch::Sender<Link>, event: &Event) {
    match event {
        Event::Connected => link.send_modify(|link| *link = Link { up: true, connects: link.connects + 1 }),
        Event::Disconnected | Event::Closed => {
            tracing::warn!(target: super::LOG, "the connection to the server is lost");
            link.send_modify(|link| link.up = false);
        }
        Event::SlowConsumer(_) | Event::ServerError(_) | Event::ClientError(_) => {
            tracing::warn!(target: super::LOG, %event, "the connection has a problem");
        }
        Event::LameDuckMode | Event::Draining => {}
    }
}

fn check_version(version: &str) -> Result<(), Error> {
    let mut parts = version.split(['.', '-']).map(|part| part.parse::<u64>().ok());
    let found = (parts.next().flatten().unwrap_or(0), parts.next().flatten().unwrap_or(0));
    if found >= VERSION_MIN {
        return Ok(());
    }
    let (major, minor) = VERSION_MIN;
    Err(Error::unusable(format!(
        "nats-server {version} is too old: install {major}.{minor} or later, best 2.14.5 or later (older ones ignore stream options without a word)"
    )))
}

/// What does not fit goes through the store, but every message has its names.
fn check_payload(bytes_max: usize) -> Result<(), Error> {
    if bytes_max >= NAMES_BYTES_MAX * 2 {
        return Ok(());
    }
    let least = NAMES_BYTES_MAX * 2;
    Err(Error::unusable(format!(
        "the server takes messages of {bytes_max} bytes: set its max_payload to at least {least}"
    )))
}

#[cfg(test)]
mod tests {
    use super::check_version;

    #[test]
    fn servers_before_2_12_are_refused() {
        for old in ["2.9.10", "2.11.9", "1.4.1", "", "x"] {
            assert!(check_version(old).is_err(), "{old}");
        }
        for new in ["2.12.0", "2.12.0-RC.1", "2.15.1", "3.0.0-dev"] {
            assert!(check_version(new).is_ok(), "{new}");
        }
    }
}
