//! Pages for people, what happens as it happens, and the same in a terminal: a real agent, a real death, a real parser.

use std::{
    collections::HashSet,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    time::Duration,
};

use scraper::{Html, Selector};
use serde_json::Value;
use tests::{
    cgroup::Cgroup,
    defib::{Agent, free_address, get, run},
    eventually, live,
    nginx::{Nginx, Prefix},
    victim::binary,
};

/// Markup and quotes in a name that a process chooses for itself, 15 bytes at most.
const HOSTILE: &str = "<b id='main'>&";

fn config(name: &str, cgroup: &Cgroup) -> String {
    format!(
        "[[service]]\nname = \"{name}\"\nrestart = true\ngrace = \"100ms\"\nhealth = \"exec:/bin/true\"\n\
         command = {{ start = [\"/bin/sleep\", \"1000\"], cgroup = \"{}\" }}\n",
        cgroup.path
    )
}

/// Head and body of a page.
fn page(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200"), "{path}: {text}");
    // A proxy writes the names of headers in its own way.
    (head.to_ascii_lowercase(), body.to_owned())
}

fn select<'a>(page: &'a Html, selector: &str) -> Vec<scraper::ElementRef<'a>> {
    page.select(&Selector::parse(selector).expect("a selector")).collect()
}

/// Checks what holds for every page, and returns it as a browser would have it.
fn sound(address: SocketAddr, path: &str) -> Html {
    let (head, body) = page(address, path);
    assert!(head.contains("content-type: text/html; charset=utf-8"), "{head}");
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    assert!(!head.contains("unsafe-inline") && body.len() <= 200_000, "{head}");
    let page = Html::parse_document(&body);
    let mut ids = HashSet::new();
    for element in select(&page, "[id]") {
        assert!(ids.insert(element.attr("id")), "{path}: two elements with one id: {}", element.html());
    }
    let forbidden = select(&page, "[style], script:not([src])").into_iter().next();
    assert!(forbidden.is_none(), "{path}: the policy forbids this: {forbidden:?}");
    assert_eq!(select(&page, "main").len(), 1, "{body}");
    assert_eq!(select(&page, "table").len(), select(&page, "table > caption").len(), "{body}");
    assert_eq!(select(&page, "th").len(), select(&page, "th[scope]").len(), "{body}");
    assert_eq!(select(&page, "svg").len(), select(&page, "svg > title").len(), "{body}");
    for element in select(&page, "[href], [src]") {
        let link = element.attr("href").or(element.attr("src")).expect("selected by it");
        if let Some(id) = link.strip_prefix('#') {
            assert!(ids.contains(&Some(id)), "{path}: {link}");
            continue;
        }
        assert!(!link.starts_with('/') && !link.contains(':'), "{path}: {link} is not relative");
        let (status, _) = get(address, &resolved(path, link)).expect("an answer");
        assert_eq!(status, 200, "{path}: {link}");
    }
    page
}

/// A relative link as a browser follows it.
fn resolved(path: &str, link: &str) -> String {
    let mut parts: Vec<_> = path.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    if joined.is_empty() || link.ends_with('/') && !joined.ends_with('/') { joined + "/" } else { joined }
}

/// Kills the service, and returns its incident when that is over.
fn death(agent: &Agent, name: &str, cgroup: &Cgroup) -> Value {
    let healthy = || agent.metrics().get(&format!("defib_service_up{{service=\"{name}\"}}")) == Some(1.0);
    eventually("health", || healthy().then_some(()));
    let before = agent.incidents(name).len();
    let pid = eventually("the service", || cgroup.members().first().copied());
    // The shell kills by itself, under the name that it has taken.
    let killer = format!("printf %s \"$0\" > /proc/self/comm; kill -9 {pid}");
    let killed = Command::new("bash").args(["-c", &killer, HOSTILE]).status().expect("bash starts");
    assert!(killed.success());
    eventually("the incident to be over", || {
        agent.incidents(name).into_iter().nth(before).filter(|incident| incident["ended"].is_string())
    })
}

#[test]
fn pages_tell_of_a_real_death_and_a_hostile_name_stays_a_name() {
    if !live::can_run("pages_tell_of_a_real_death_and_a_hostile_name_stays_a_name") {
        return;
    }
    let cgroup = Cgroup::new(Some(64 << 20));
    let agent = Agent::start(&config("web", &cgroup));
    let incident = death(&agent, "web", &cgroup);
    let first = sound(agent.address(), "/");
    let names: Vec<String> = select(&first, "tbody th").iter().map(|name| name.text().collect()).collect();
    assert!(names.iter().any(|name| name == "web"), "{names:?}");
    assert!(select(&first, "main b").is_empty(), "markup of a name");
    assert!(select(&first, "main")[0].text().collect::<String>().contains(HOSTILE), "{}", first.html());
    let path = format!("/incidents/{}", incident["id"]);
    assert!(!select(&first, &format!("a[href='{}']", &path[1..])).is_empty(), "{}", first.html());
    let one = sound(agent.address(), &path);
    let text: String = select(&one, "main")[0].text().collect();
    for want in
        ["SIGKILL", "its main process ended", "restart asked, try 1", "healthy again", "Defib restarted it", HOSTILE]
    {
        assert!(text.contains(want), "{want}: {text}");
    }
    assert_eq!(get(agent.address(), "/incidents/999").expect("an answer").0, 404);
    assert_eq!(get(agent.address(), "/?page=2").expect("an answer").0, 404);
}

/// Follows events: the first line of the answer, and the rest as it comes.
fn follow(address: SocketAddr, path: &str) -> (String, BufReader<TcpStream>) {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("sent");
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).expect("an answer");
    (line, stream)
}

#[test]
fn below_the_prefix_of_a_proxy_pages_links_and_events_work() {
    const NAME: &str = "below_the_prefix_of_a_proxy_pages_links_and_events_work";
    if let Some(missing) = Nginx::missing() {
        live::skip(NAME, missing);
        return;
    }
    if !live::can_run(NAME) {
        return;
    }
    let cgroup = Cgroup::new(None);
    let agent = Agent::start(&config("behind", &cgroup));
    let front = free_address();
    let _nginx = Prefix::start(front, "/tools/defib/", agent.address());
    let (line, reader) = follow(front, "/tools/defib/api/v1/events");
    assert!(line.contains(" 200 "), "{line}");
    let incident = death(&agent, "behind", &cgroup);
    let heard = reader.lines().map(|line| line.expect("a line")).find(|line| line.contains("\"what\":\"healthy\""));
    assert!(heard.is_some(), "as it happens, although nginx would rather wait for the end");

    let first = sound(front, "/tools/defib/");
    // Where the script looks for events.
    let events = select(&first, "#live")[0].attr("data-events").expect("it has one");
    assert_eq!(resolved("/tools/defib/", events), "/tools/defib/api/v1/events");
    let link = select(&first, "main a[href^='incidents/']")[0].attr("href").expect("selected by it");
    assert_eq!(link, format!("incidents/{}", incident["id"]));
    let one = sound(front, &resolved("/tools/defib/", link));
    let home = select(&one, "header a")[0].attr("href").expect("it leads somewhere");
    assert_eq!(resolved("/tools/defib/incidents/1", home), "/tools/defib/");
    // What is not there leads back too.
    for path in ["/tools/defib/?page=9", "/tools/defib/incidents/999"] {
        let (status, body) = get(front, path).expect("an answer");
        let page = Html::parse_document(&body);
        let back = select(&page, "main a")[0].attr("href").expect("it leads back");
        assert_eq!((status, resolved(path, back).as_str()), (404, "/tools/defib/"), "{body}");
    }
}

#[test]
fn a_death_is_heard_as_it_happens_and_who_does_not_read_holds_up_nobody() {
    if !live::can_run("a_death_is_heard_as_it_happens_and_who_does_not_read_holds_up_nobody") {
        return;
    }
    let cgroup = Cgroup::new(None);
    let agent = Agent::start(&config("heard", &cgroup));
    let follow = || follow(agent.address(), "/api/v1/events");
    let idle: Vec<_> = (0..31).map(|_| follow()).collect();
    let (line, reader) = follow();
    assert!(line.contains(" 200 ") && idle.iter().all(|(line, _)| line.contains(" 200 ")), "{line}");
    assert!(follow().0.contains(" 503 "), "one too many");
    death(&agent, "heard", &cgroup);
    let mut reader = reader.lines().map(|line| line.expect("a line"));
    for what in ["died", "verdict", "restart_asked", "healthy"] {
        let want = format!("\"what\":\"{what}\"");
        let line = reader.find(|line| line.starts_with("data: ") && line.contains(&want)).expect("told");
        let event: Value = serde_json::from_str(&line["data: ".len()..]).expect("JSON");
        assert_eq!(event["service"], "heard", "{event}");
    }
    // It ends although all of them are still connected; their streams end with it.
    drop(agent);
    assert!(reader.count() < 1000);
}

#[test]
fn top_shows_the_service_in_a_terminal_and_wants_one() {
    let output = run(&["top"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(error.contains("defib status") && error.lines().count() == 1, "{error}");
    if !live::can_run("top_shows_the_service_in_a_terminal_and_wants_one") {
        return;
    }
    let cgroup = Cgroup::new(Some(64 << 20));
    let agent = Agent::start(&config("shown", &cgroup));
    let state = agent.state.path();
    let command = format!(
        "stty cols 100 rows 30; exec {} top --socket {} --state-dir {}",
        binary("defib").display(),
        state.join("control.sock").display(),
        state.display()
    );
    let mut script = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script (util-linux) starts");
    let mut out = script.stdout.take().expect("piped");
    let mut seen = Vec::new();
    let mut piece = [0; 4096];
    while !String::from_utf8_lossy(&seen).contains("shown") {
        let count = out.read(&mut piece).expect("output");
        assert!(count > 0, "it ended: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&piece[..count]);
    }
    script.stdin.take().expect("piped").write_all(b"q").expect("sent");
    out.read_to_end(&mut seen).expect("output");
    assert!(script.wait().expect("ended").success());
    let text = String::from_utf8_lossy(&seen);
    assert!(text.contains("\u{1b}[?1049l"), "the screen is given back: {text:?}");
}
