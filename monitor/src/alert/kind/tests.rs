use super::*;

const RULES: &str = include_str!("../../../../deploy/prometheus/defib.rules.yml");

fn all() -> impl Iterator<Item = Kind> {
    SCOPES.into_iter().map(Kind::OomKill).chain(Kind::LEVELS)
}

/// The rule of that alert: from its name to the next one.
fn rule(name: &str) -> &'static str {
    let (_, rest) = RULES.split_once(&format!("- alert: {name}\n")).unwrap_or_else(|| panic!("no rule {name}"));
    rest.split("- alert:").next().expect("something follows")
}

#[test]
fn every_alert_has_a_rule_of_that_name_severity_and_runbook() {
    for kind in all() {
        let rule = rule(kind.name());
        assert!(rule.contains(&format!("severity: {}\n", kind.severity())), "{rule}");
        assert!(rule.contains(&format!("runbook: {}\n", kind.runbook())), "{rule}");
        let summary = kind.summary("{{ $labels.service }}", "{{ $labels.instance }}");
        assert!(rule.contains(&format!("summary: \"{summary}\"\n")), "{summary}\n{rule}");
    }
}

#[test]
fn a_name_with_its_scope_leads_back() {
    for kind in all() {
        assert_eq!(Kind::parse(kind.name(), kind.scope()), Some(kind));
    }
    for (name, scope) in [("DefibOomKill", None), ("DefibLeak", Some("memcg")), ("DefibOomKill", Some("moon"))] {
        assert_eq!(Kind::parse(name, scope), None);
    }
}
