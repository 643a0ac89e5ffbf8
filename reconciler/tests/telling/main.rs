//! Notifications, statuses of commits, metrics and the service: with receivers on
//! loopback that speak real HTTP and SMTP.

mod forges;
mod receivers;
mod service;
mod sink;
