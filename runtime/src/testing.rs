//! Tests of orchestrations.

pub use outlast_core::ReplayDifference;
