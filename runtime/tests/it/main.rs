//! The whole system on real stores.

mod basics;
