//! `perjoule web`: the bench in a browser, from files that are part of this binary.

use anyhow::{Context, Result, bail};
use clap::Args;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use tiny_http::{Header, Method, Request, Response, Server};

use super::Ended;
use crate::measure::interrupted;

pub(super) const EXAMPLES: &str = "Examples:
  perjoule web                       then open the address that it prints
  perjoule web --port 0              any free port
  perjoule web --bind 0.0.0.0        for other machines: browsers offer WebGPU to https and localhost alone, so that they
                                     need a proxy, or ssh -L 8080:localhost:8080 HOST

Nothing is sent back: records are downloaded from the page, and `perjoule compare` and `perjoule report` read them.";

/// The page's files, by name.
const PAGE: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/page.rs"));

/// How long Ctrl-C may go unnoticed.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(crate) struct WebArgs {
    /// Port to listen on; 0 for any that is free
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    bind: IpAddr,
    /// Print the address alone
    #[arg(long)]
    quiet: bool,
}

pub(crate) fn run(args: &WebArgs) -> Result<Ended> {
    if PAGE.is_empty() {
        bail!(
            "this program was built without its page; in the sources, run `cargo xtask web`, and then `cargo build --release -p \
             perjoule-bench --features web` again"
        );
    }
    let wanted = SocketAddr::new(args.bind, args.port);
    let server = match Server::http(wanted) {
        Ok(server) => server,
        Err(error) => bail!("cannot listen on {wanted}: {error}; --port 0 takes a free port"),
    };
    let address = server.server_addr().to_ip().context("a server without an address")?;
    // browsers offer WebGPU to this name, whatever the loopback address is
    let host = if address.ip().is_loopback() { "localhost".to_string() } else { args.bind.to_string() };
    let host = if args.bind.is_ipv6() && !args.bind.is_loopback() { format!("[{host}]") } else { host };
    println!("http://{host}:{}/", address.port());
    if !args.quiet {
        if !address.ip().is_loopback() {
            eprintln!(
                "note: browsers offer WebGPU to https and localhost alone: others need a proxy or a tunnel"
            );
        }
        eprintln!("Ctrl-C ends it");
    }
    while !interrupted() {
        match server.recv_timeout(LOOK) {
            Ok(Some(request)) => answer(request),
            Ok(None) => {}
            Err(error) => return Err(error).context("the server"),
        }
    }
    Ok(Ended::Done)
}

/// Answers a request; whoever has gone meanwhile gets nothing.
fn answer(request: Request) {
    let path = request.url().split(['?', '#']).next().unwrap_or_default();
    let name = match path.trim_start_matches('/') {
        "" => "index.html",
        name => name,
    };
    let header = |name: &str, value: &str| Header::from_bytes(name, value).ok();
    let respond = |status: u16, mime: &str, body: &[u8]| {
        let mut response = Response::from_data(body).with_status_code(status);
        let headers = [
            header("Content-Type", mime),
            header("X-Content-Type-Options", "nosniff"),
            // another build may serve other files under these names
            header("Cache-Control", "no-cache"),
            // alone in their process, pages get a finer clock
            header("Cross-Origin-Opener-Policy", "same-origin"),
            header("Cross-Origin-Embedder-Policy", "require-corp"),
            header("Cross-Origin-Resource-Policy", "same-origin"),
        ];
        headers.into_iter().flatten().for_each(|header| response.add_header(header));
        response
    };
    const TEXT: &str = "text/plain; charset=utf-8";
    let response = match (request.method(), PAGE.iter().find(|(known, _)| *known == name)) {
        (Method::Get | Method::Head, Some((name, body))) => respond(200, mime(name), body),
        (Method::Get | Method::Head, None) => respond(404, TEXT, b"there is no such file\n"),
        _ => respond(405, TEXT, b"files can be read here, and nothing else\n"),
    };
    let _ = request.respond(response);
}

/// The type of a file by its name's ending.
fn mime(name: &str) -> &'static str {
    match name.rsplit_once('.').map(|(_, ending)| ending) {
        Some("html") => "text/html; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("wasm") => "application/wasm",
        Some("json") => "application/json",
        Some("txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::mime;

    #[test]
    fn browsers_compile_modules_only_of_their_type() {
        assert_eq!(mime("perjoule_web_bg.wasm"), "application/wasm");
        assert!(mime("page.js").starts_with("text/javascript"));
        assert!(mime("index.html").starts_with("text/html"));
        assert_eq!(mime("unknown"), "application/octet-stream");
    }
}
