//! Where log lines go: spans and events of `tracing`, under targets that a filter can name.

use std::io::IsTerminal;
use std::sync::Once;
use std::time::Duration;

use tracing_subscriber::Layer;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// Target of what orchestration code logs.
pub(crate) const ORCHESTRATION: &str = "outlast::orchestration";
/// Target of what activity code logs.
pub(crate) const ACTIVITY: &str = "outlast::activity";
/// Target of what the runtime itself logs.
pub(crate) const RUNTIME: &str = "outlast::runtime";
/// Target of spans that are exported but appear in no log line.
#[cfg(feature = "telemetry")]
pub(crate) const TRACE: &str = "outlast::trace";

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One line with all fields.
    #[default]
    Pretty,
    /// One line with few fields.
    Compact,
    /// One JSON object per line.
    Json,
}

/// What a runtime does about logging when the program has installed no subscriber.
#[derive(Clone, Debug)]
pub struct ObservabilityConfig {
    /// The form of lines.
    pub log_format: LogFormat,
    /// Level of the default filter `error,outlast::orchestration={level},outlast::activity={level}`; `RUST_LOG` wins.
    pub log_level: String,
    /// The name of this service for telemetry, unless its own options name it (default `outlast`).
    pub service_name: String,
    /// Its version for telemetry, if it has one.
    pub service_version: Option<String>,
    /// No effect: gauges are read when they are asked for.
    #[deprecated(note = "no effect")]
    pub gauge_poll_interval: Duration,
    /// Whether to install a subscriber at all (default: yes, unless the program has one).
    pub install_subscriber: bool,
}

impl Default for ObservabilityConfig {
    #[expect(deprecated, reason = "knobs without effect stay accepted")]
    fn default() -> Self {
        Self {
            log_format: LogFormat::Pretty,
            log_level: "info".to_owned(),
            service_name: "outlast".to_owned(),
            service_version: None,
            gauge_poll_interval: Duration::from_secs(60),
            install_subscriber: true,
        }
    }
}

impl ObservabilityConfig {
    /// The filter used when `RUST_LOG` is not set.
    pub fn default_filter(&self) -> String {
        let level = &self.log_level;
        format!("error,{ORCHESTRATION}={level},{ACTIVITY}={level}")
    }

    /// Installs a subscriber that writes to standard error, once per process, unless the program has one.
    pub(crate) fn install(&self) {
        static INSTALLED: Once = Once::new();
        if !self.install_subscriber {
            return;
        }
        INSTALLED.call_once(|| {
            // A program that has a subscriber of its own keeps it.
            let _kept = tracing_subscriber::registry().with(self.lines()).try_init();
        });
    }

    /// Writes log lines to standard error.
    pub(crate) fn lines<S>(&self) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: tracing::Subscriber + for<'span> LookupSpan<'span>,
    {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env()
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(self.default_filter()));
        #[cfg(feature = "telemetry")]
        let filter =
            filter.add_directive(format!("{TRACE}=off").parse().expect("a directive like those of the filter"));
        let terminal = std::io::stderr().is_terminal();
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(terminal);
        match self.log_format {
            LogFormat::Pretty => lines.with_filter(filter).boxed(),
            LogFormat::Compact => lines.compact().with_filter(filter).boxed(),
            LogFormat::Json => lines.json().with_filter(filter).boxed(),
        }
    }
}
