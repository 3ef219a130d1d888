//! The host names that this agent answers to.
//!
//! A foreign web page can point its own name at 127.0.0.1 (DNS rebinding); an operator's browser then lets it read what
//! is served here. It cannot choose the `Host:` that the browser sends, which is the page's name. So without a password
//! and without TLS, only requests for names of this host are answered.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::http::{HeaderMap, Uri, header};

use crate::host::bounded;

/// Bytes read of each file with names of this host.
const LONGEST: usize = 64 << 10;

/// Accepted names besides addresses and `localhost`: lower case, without a trailing dot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts(Vec<String>);

impl Hosts {
    /// The host's own names, and those that the configuration adds.
    pub(crate) fn of_this_host(configured: &[String]) -> Self {
        let own = rustix::system::uname().nodename().to_string_lossy().into_owned();
        // A missing file only means fewer names.
        let read = |path| bounded::beginning(path, LONGEST).unwrap_or_default();
        Self::new(&own, &read("/etc/hosts"), &read("/etc/resolv.conf"), configured)
    }

    /// `hosts` is in the format of hosts(5), `resolver` of resolv.conf(5).
    fn new(own: &str, hosts: &str, resolver: &str, configured: &[String]) -> Self {
        let own = plain(own);
        let short = own.split('.').next().unwrap_or_default().to_owned();
        let mut names = vec![own.clone(), short.clone()];
        for line in hosts.lines() {
            let words = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
            let of_line: Vec<_> = words.skip(1).map(plain).collect();
            if of_line.iter().any(|name| *name == own || *name == short) {
                names.extend(of_line);
            }
        }
        for line in resolver.lines() {
            let mut words = line.split_ascii_whitespace();
            if matches!(words.next(), Some("search" | "domain")) {
                names.extend(words.map(|domain| format!("{short}.{}", plain(domain))));
            }
        }
        names.extend(configured.iter().map(|name| plain(name)));
        names.retain(|name| !name.is_empty());
        names.sort_unstable();
        names.dedup();
        Self(names)
    }

    /// The name that a request was sent to, if it is not accepted. A request without a name does not come from a
    /// browser.
    pub(super) fn refuses(&self, uri: &Uri, headers: &HeaderMap) -> Option<String> {
        let of_headers = headers.get_all(header::HOST).iter();
        let named = of_headers.map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
        // An absolute URI in the request line takes precedence over the header (RFC 9112, section 3.2.2): both must be
        // accepted.
        named.chain(uri.authority().map(|authority| authority.as_str().to_owned())).find(|host| !self.has(host))
    }

    /// `host` as in `Host:`, with or without a port.
    fn has(&self, host: &str) -> bool {
        let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
        let name = match host.rsplit_once(':') {
            Some((name, port)) if is_port(port) && !host.ends_with(']') => name,
            _ => host,
        };
        if let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return address.parse::<Ipv6Addr>().is_ok();
        }
        if name.parse::<Ipv4Addr>().is_ok() {
            return true;
        }
        let name = plain(name);
        // Names below `localhost` are this host by definition (RFC 6761, section 6.3).
        name == "localhost" || name.ends_with(".localhost") || self.0.binary_search(&name).is_ok()
    }
}

fn plain(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn hosts() -> Hosts {
        let hosts =
            "127.0.0.1 localhost\n127.0.1.1 web1.example.com web1 # a comment web9\n10.0.0.9 db.example.com db\n";
        let resolver = "nameserver 10.0.0.1\nsearch corp.example. lab.example\n";
        Hosts::new("Web1", hosts, resolver, &["Defib.example".to_owned()])
    }

    #[test]
    fn addresses_and_own_names_are_served_and_foreign_names_are_not() {
        let hosts = hosts();
        for own in [
            "127.0.0.1:9669",
            "192.0.2.7",
            "[::1]:9669",
            "[2001:db8::1]",
            "localhost:9669",
            "LOCALHOST",
            "app.localhost:1",
            "web1:9669",
            "WEB1.example.com.",
            "web1.corp.example:9669",
            "web1.lab.example",
            "defib.EXAMPLE:443",
        ] {
            assert!(hosts.has(own), "{own}");
        }
        for foreign in [
            "evil.example",
            "evil.example:9669",
            "db.example.com",
            "web9",
            "web1.evil.example",
            "evil.defib.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "evil.example:80:127.0.0.1",
            "[evil.example]",
            "[::1].evil.example",
            "[::1]evil.example:80",
            "127.0.0.1@evil.example",
            "",
            ":9669",
            "corp.example",
        ] {
            assert!(!hosts.has(foreign), "{foreign}");
        }
        assert!(!Hosts::new("", "", "", &[]).has(""), "no name is no name of ours");
    }

    #[test]
    fn the_request_line_and_every_header_count_and_none_is_no_browser() {
        let refused = |uri: &str, named: &[&str]| {
            let mut headers = HeaderMap::new();
            for host in named {
                headers.append(header::HOST, host.parse().expect("a value"));
            }
            hosts().refuses(&uri.parse().expect("an address"), &headers)
        };
        assert_eq!(refused("/", &[]), None);
        assert_eq!(refused("/", &["web1"]), None);
        assert_eq!(refused("/", &["evil.example"]).as_deref(), Some("evil.example"));
        assert_eq!(refused("/", &["web1", "evil.example"]).as_deref(), Some("evil.example"));
        assert_eq!(refused("http://evil.example/", &["web1"]).as_deref(), Some("evil.example"));
        assert_eq!(refused("http://web1:9669/", &["web1"]), None);
    }

    proptest! {
        #[test]
        fn whatever_is_named_is_an_address_or_a_name_of_ours(host in ".{0,40}|[a-z0-9.:\\[\\]-]{0,40}") {
            let hosts = hosts();
            if hosts.has(&host) {
                // As a browser sends it: before the port stands an address, or a name of this host.
                let lower = host.to_ascii_lowercase();
                let name = lower.trim_end_matches(|byte: char| byte.is_ascii_digit()).strip_suffix(':').unwrap_or(&lower);
                let bare = name.strip_suffix('.').unwrap_or(name);
                prop_assert!(
                    bare.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
                        || hosts.0.iter().any(|own| bare == own)
                        || bare == "localhost"
                        || bare.ends_with(".localhost"),
                    "{host:?}"
                );
            }
        }
    }
}
