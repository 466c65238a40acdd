//! Where a repository is, and how it is spoken to. Plain decisions.

/// How a repository is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// `https://`.
    Https,
    /// `http://`.
    Http,
    /// `git://`: git's own daemon, without credentials.
    Daemon,
    /// `ssh://`, or `user@host:path`.
    Ssh,
}

/// A repository's URL, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// As given.
    pub url: String,
    /// How it is spoken to.
    pub way: Way,
    /// `host` or `host:port`, without a user.
    pub host: String,
    /// `user@host` as ssh wants it.
    pub login: String,
    /// Port of an `ssh://` or `git://` URL.
    pub port: Option<u16>,
    /// What follows the host, with its `/` where the URL has one.
    pub path: String,
}

impl Address {
    /// Takes a URL apart. `file://` and the like are none of ours: local files are declared volumes' alone.
    pub fn of(url: &str) -> Option<Self> {
        let whole = |way, rest: &str| {
            let (login, path) = rest.split_once('/')?;
            Self::new(url, way, login, format!("/{path}"))
        };
        if let Some(rest) = url.strip_prefix("https://") {
            whole(Way::Https, rest)
        } else if let Some(rest) = url.strip_prefix("http://") {
            whole(Way::Http, rest)
        } else if let Some(rest) = url.strip_prefix("git://") {
            whole(Way::Daemon, rest)
        } else if let Some(rest) = url.strip_prefix("ssh://") {
            whole(Way::Ssh, rest)
        } else if url.contains("://") {
            None
        } else {
            // As git has it elsewhere, a host alone would do; then every word with a colon would be a repository.
            let (login, path) = url.split_once(':').filter(|(login, _)| login.contains('@'))?;
            Self::new(url, Way::Ssh, login, path.to_owned())
        }
    }

    fn new(url: &str, way: Way, login: &str, path: String) -> Option<Self> {
        let host = login.rsplit_once('@').map_or(login, |(_, host)| host);
        // A program's option, where ssh would read one.
        if host.is_empty() || path.trim_matches('/').is_empty() || login.starts_with('-') || host.starts_with('-') {
            return None;
        }
        let port = match host.rsplit_once(':') {
            Some((_, port)) if !host.ends_with(']') => Some(port.parse().ok()?),
            _ => None,
        };
        let host = host.to_owned();
        Some(Self { url: url.to_owned(), way, host, login: login.to_owned(), port, path })
    }

    /// The host without its port.
    pub fn bare_host(&self) -> &str {
        bare(&self.host)
    }

    /// Where its large files are, unless the repository says otherwise. Servers that speak ssh or git's own protocol
    /// have them at `https://` of the same host.
    pub fn lfs(&self) -> String {
        let path = self.path.trim_matches('/');
        let path = path.strip_suffix(".git").unwrap_or(path);
        match self.way {
            Way::Https => format!("https://{}/{path}.git/info/lfs", self.host),
            Way::Http => format!("http://{}/{path}.git/info/lfs", self.host),
            Way::Daemon | Way::Ssh => format!("https://{}/{path}.git/info/lfs", self.bare_host()),
        }
    }
}

fn bare(host: &str) -> &str {
    if host.ends_with(']') { host } else { host.rsplit_once(':').map_or(host, |(bare, _)| bare) }
}

/// `http` or `https`, and the host with its port, of a URL.
pub(super) fn origin(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    (matches!(scheme, "http" | "https") && !host.is_empty()).then_some((scheme, host))
}

/// Whether two URLs name the same host, whatever the port.
pub(super) fn same_host(one: &str, other: &str) -> bool {
    let host = |url| origin(url).map(|(_, host)| bare(host).to_ascii_lowercase());
    host(one).is_some_and(|one| Some(one) == host(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let lfs = |url: &str| Address::of(url).map(|a| (a.way, a.host.clone(), a.lfs()));
        let (https, http) = (|p: &str| format!("https://{p}/info/lfs"), |p: &str| format!("http://{p}/info/lfs"));
        for (url, expected) in [
            ("https://h.org/a/b", Some((Way::Https, "h.org", https("h.org/a/b.git")))),
            ("https://h.org/a/b.git/", Some((Way::Https, "h.org", https("h.org/a/b.git")))),
            ("http://h.org:8080/b", Some((Way::Http, "h.org:8080", http("h.org:8080/b.git")))),
            ("git@h.org:a/b.git", Some((Way::Ssh, "h.org", https("h.org/a/b.git")))),
            ("ssh://me@h.org:2222/a/b", Some((Way::Ssh, "h.org:2222", https("h.org/a/b.git")))),
            ("git://h.org:9000/b", Some((Way::Daemon, "h.org:9000", https("h.org/b.git")))),
            ("file:///etc", None),
            ("ext::sh -c true", None),
            ("https://h.org/", None),
            ("ssh://-oProxyCommand=x/a", None),
            ("git@-oProxyCommand=x:a", None),
            ("https://h.org:port/a", None),
        ] {
            assert_eq!(lfs(url), expected.map(|(way, host, lfs)| (way, host.to_owned(), lfs)), "{url}");
        }
    }

    #[test]
    fn a_host_is_the_same_whatever_the_port() {
        assert!(same_host("https://h.org:1/a", "http://H.org/b") && !same_host("https://h.org/a", "https://g.org/a"));
    }
}
