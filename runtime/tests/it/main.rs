//! The whole system on real stores: the behaviour that programs rely on.

mod world;

mod activities;
mod basics;
mod cancelling;
mod children;
