//! Telemetry as a scraper, a prober and a collector see it, over HTTP.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod collector;
mod node;
mod one_process;
mod processes;
