//! The HTTP surface. Nobody imports it but `cli`.

use std::future::Future;

use crate::runtime::Handle;

/// Serves until `shutdown` resolves, then lets open requests end.
pub async fn serve(
    _listener: tokio::net::TcpListener,
    _handle: Handle,
    _shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    unimplemented!()
}
