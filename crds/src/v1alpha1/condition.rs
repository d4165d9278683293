//! Every condition type and every reason, in one place. `docs/runbooks.md` has a section for each; a test compares them.

use std::fmt;

macro_rules! names {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$inner])* $variant),+ }

        impl $name {
            /// Every value, in the order of the documentation.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Returns the name as the API shows it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant)),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.as_str().to_owned()
            }
        }

        impl std::str::FromStr for $name {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|name| name.as_str() == text).ok_or(UnknownName)
            }
        }
    };
}

/// A text that is no condition type or reason of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownName;

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failed to recognise the name of a condition or reason")
    }
}

impl std::error::Error for UnknownName {}

names! {
    /// What a condition is about.
    ConditionType {
        /// Everything the spec asks for is in place and observed.
        Ready,
        /// The spec is valid and not in conflict with another resource.
        Accepted,
        /// The Secrets that the spec names exist and have the keys in use.
        ReferencesResolved,
        /// The monitor is rolled out.
        MonitorAvailable,
        /// The monitor is connected to the broker.
        BrokerReachable,
        /// The monitor writes to the store.
        StoreReachable,
        /// The monitor's database role can read this broker's rows only.
        StoreIsolated,
        /// The operator changes nothing, because the user said so.
        Paused,
        /// The operator cannot go on until the user changes something.
        Stalled,
    }
}

names! {
    /// Why a condition is as it is. `Ready=False` carries the reason of what holds it up.
    Reason {
        // Ready
        /// Everything is as the spec asks.
        AsExpected,
        /// Not seen yet, or on the way.
        Progressing,
        /// `enabled: false`: nothing runs, as asked.
        Disabled,
        /// The resource is being deleted.
        Deleting,
        /// The operator cannot prepare the broker's part of the store.
        StoreNotPrepared,
        /// The API server refused what the operator wanted to create.
        ApplyFailed,

        // Accepted
        /// The spec is valid.
        Valid,
        /// The spec contradicts itself or cannot be read.
        InvalidSpec,
        /// An older resource of this namespace watches the same broker with the same Celery settings.
        DuplicateBroker,
        /// The URL's scheme is none that Kanchi knows.
        UnsupportedTransport,
        /// The broker behind the Secret is of another kind than the one whose history is kept.
        TransportChanged,

        // ReferencesResolved
        /// Every Secret and key is there.
        AllFound,
        /// A Secret that the spec names does not exist.
        SecretNotFound,
        /// A Secret lacks a key that the spec names.
        SecretKeyMissing,
        /// A Secret's value is not what it must be, for example no URL.
        SecretValueInvalid,
        /// The operator may not read a Secret that the spec names.
        SecretForbidden,

        // MonitorAvailable
        /// The newest monitor is ready.
        RolledOut,
        /// The monitor is being replaced.
        RollingOut,
        /// The monitor works, but the one that would take over from it is not ready.
        StandbyNotReady,
        /// The new image waits until other monitors have it.
        WaitingForTurn,
        /// The monitor cannot use its newest configuration and goes on with the one before.
        ConfigRefused,
        /// The monitor ends again and again.
        CrashLooping,
        /// The node cannot pull the monitor's image.
        ImagePullFailed,
        /// No node takes the monitor's pod.
        Unschedulable,
        /// The pod could not be created, for example because of a quota.
        PodsRefused,
        /// The monitor is not ready, and nothing more is known.
        WorkloadNotReady,
        /// There is no monitor, because `enabled` is false.
        ScaledToZero,

        // BrokerReachable
        /// Connected.
        Connected,
        /// The first connection is being made.
        Connecting,
        /// Nothing listens at the broker's address.
        ConnectionRefused,
        /// There is no route to the broker's host.
        HostUnreachable,
        /// The connection ended.
        ConnectionLost,
        /// The broker refuses connections for want of resources, or is starting or stopping.
        BrokerUnavailable,
        /// The broker did not answer in time.
        Timeout,
        /// The broker refused user or password.
        AuthenticationFailed,
        /// The broker's user may not do what the monitor needs.
        AccessRefused,
        /// The certificate or the TLS handshake failed.
        TlsFailed,
        /// The host name has no address.
        DnsFailed,
        /// The virtual host does not exist.
        VhostNotFound,
        /// The event exchange is of another kind than Celery's.
        ExchangeMismatch,
        /// The broker answers in a way that is not understood.
        ProtocolError,
        /// The broker lacks something that is needed.
        NotImplemented,
        /// The certificates or the key cannot be used.
        InvalidConfiguration,

        // StoreReachable
        /// Rows are written.
        Writing,
        /// The store's schema is older than the monitor needs.
        MigrationPending,
        /// The store does not answer.
        Unreachable,
        /// The database accepts no further connection.
        ConnectionLimit,
        /// The database refused the role or its password.
        StoreAuthenticationFailed,
        /// The TLS handshake with the store failed, or its certificate was not accepted.
        StoreTlsFailed,
        /// The store's disk is full.
        StoreFull,
        /// The store is a standby or was set read-only.
        StoreReadOnly,
        /// The store's schema is newer than the monitor knows.
        StoreTooNew,
        /// The database belongs to another installation.
        ForeignInstallation,

        // BrokerReachable and StoreReachable
        /// The monitor has not reported yet.
        NotReportedYet,
        /// The monitor's last report is older than 30 seconds.
        ReportStale,

        // StoreIsolated
        /// The monitor has a database role of its own.
        OwnRole,
        /// All monitors share one role, since the installation may not create roles.
        SharedRole,

        // Paused, Stalled
        /// The annotation `kanchi.io/paused: "true"` is set.
        PausedByUser,
        /// The annotation is not set.
        NotPaused,
        /// Nothing waits for the user.
        NotStalled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_camel_case_and_unique_and_short() {
        let mut seen = std::collections::BTreeSet::new();
        for name in Reason::ALL
            .iter()
            .map(|r| r.as_str())
            .chain(ConditionType::ALL.iter().map(|c| c.as_str()))
        {
            assert!(
                name.len() <= 64 && name.starts_with(|c: char| c.is_ascii_uppercase()),
                "{name}"
            );
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
            assert!(seen.insert(name), "{name} twice");
        }
    }

    #[test]
    fn names_are_read_back() {
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse(), Ok(*reason));
        }
        assert_eq!("Surprise".parse::<Reason>(), Err(UnknownName));
    }
}
