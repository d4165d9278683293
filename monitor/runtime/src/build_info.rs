//! Which build is running: the first log line and the `kanchi_build_info` metric.

/// What was built, from what, when and by which compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildInfo {
    /// Name of the executable.
    pub component: &'static str,
    /// Version of the workspace.
    pub version: &'static str,
    /// Commit, from `KANCHI_COMMIT` at build time; `unknown` in a developer's build.
    pub commit: &'static str,
    /// Date, from `KANCHI_BUILD_DATE` at build time; `unknown` in a developer's build.
    pub date: &'static str,
    /// `rustc --version`.
    pub compiler: &'static str,
}

impl BuildInfo {
    /// Returns the build information of the named executable.
    pub const fn of(component: &'static str) -> Self {
        Self {
            component,
            version: env!("CARGO_PKG_VERSION"),
            commit: or_unknown(option_env!("KANCHI_COMMIT")),
            date: or_unknown(option_env!("KANCHI_BUILD_DATE")),
            compiler: or_unknown(option_env!("KANCHI_RUSTC")),
        }
    }

    /// Writes the build information; by convention the first line of every process.
    pub fn log(&self) {
        tracing::info!(
            build.component = self.component,
            build.version = self.version,
            build.commit = self.commit,
            build.date = self.date,
            build.compiler = self.compiler,
            "starting"
        );
    }
}

const fn or_unknown(value: Option<&'static str>) -> &'static str {
    match value {
        Some(text) if !text.is_empty() => text,
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_compiler_and_never_leaves_a_field_empty() {
        let info = BuildInfo::of("kanchi-test");
        assert!(info.compiler.starts_with("rustc "), "{info:?}");
        assert!(
            [info.version, info.commit, info.date]
                .iter()
                .all(|text| !text.is_empty()),
            "{info:?}"
        );
    }
}
