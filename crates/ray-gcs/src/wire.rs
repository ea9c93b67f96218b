//! Messages to the control plane's own types and back.

use std::sync::Arc;

use ray_core::constraint::Constraint;
use ray_core::id::NodeId;
use ray_core::pb::common::actor_info::State as ActorState;
use ray_core::pb::common::death_cause::Kind;
use ray_core::pb::common::placement_group_info::State as GroupState;
use ray_core::pb::common::placement_group_spec::Strategy as PbGroupStrategy;
use ray_core::pb::gcs::node_info::State as PbNodeState;
use ray_core::pb::{common, gcs};
use ray_core::resource::Resources;
use ray_core::wire::{WireError, id, required};
use ray_scheduler::{Bundle, GroupStrategy};

use crate::actor::{ActorInfo, ActorPhase, ActorSpec, DeathCause, DeathKind, MaxRestarts, WorkerAddress};
use crate::effects::{Event, Snapshot};
use crate::job_table::{JobInfo, JobSpec, JobState};
use crate::node_table::{NodeInfo, NodeSpec, NodeState};
use crate::placement_group::{GroupInfo, GroupPhase, GroupSpec};
use crate::usage_table::{Demand, INFEASIBLE, NodeUsage};

type Checked<T> = Result<T, WireError>;

fn invalid(field: &'static str, reason: impl Into<String>) -> WireError {
    WireError::Invalid { field, reason: reason.into() }
}

/// The text, unless it is empty.
fn given(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// The id, unless it is empty.
pub(crate) fn given_id<'a, T: TryFrom<&'a [u8], Error = ray_core::id::IdError>>(
    field: &'static str,
    bytes: &'a [u8],
) -> Checked<Option<T>> {
    if bytes.is_empty() { Ok(None) } else { id(field, bytes).map(Some) }
}

fn resources(message: Option<common::Resources>) -> Checked<Resources> {
    message.unwrap_or_default().try_into()
}

/// Checks a worker's address.
pub(crate) fn worker_address(message: common::WorkerAddress) -> Checked<WorkerAddress> {
    Ok(WorkerAddress {
        worker_id: id("address.worker_id", &message.worker_id)?,
        node_id: id("address.node_id", &message.node_id)?,
        socket_path: message.socket_path,
        tcp_address: message.tcp_address,
    })
}

impl From<&WorkerAddress> for common::WorkerAddress {
    fn from(address: &WorkerAddress) -> Self {
        Self {
            worker_id: address.worker_id.to_binary(),
            node_id: address.node_id.to_binary(),
            socket_path: address.socket_path.clone(),
            tcp_address: address.tcp_address.clone(),
        }
    }
}

/// Checks a cause of death.
pub(crate) fn death_cause(message: common::DeathCause) -> Checked<DeathCause> {
    let kind = match message.kind() {
        Kind::Unspecified => return Err(invalid("cause.kind", format!("{} is no known kind", message.kind))),
        Kind::ProcessExited => DeathKind::ProcessExited,
        Kind::CreationFailed => DeathKind::CreationFailed,
        Kind::Killed => DeathKind::Killed,
        Kind::JobFinished => DeathKind::JobFinished,
        Kind::NodeDied => DeathKind::NodeDied,
        Kind::OutOfScope => DeathKind::OutOfScope,
        Kind::ExitedByUser => DeathKind::ExitedByUser,
        Kind::Unschedulable => DeathKind::Unschedulable,
        Kind::RuntimeEnvSetupFailed => DeathKind::RuntimeEnvSetupFailed,
        Kind::PlacementGroupRemoved => DeathKind::PlacementGroupRemoved,
        Kind::OutOfMemory => DeathKind::OutOfMemory,
    };
    Ok(DeathCause { kind, message: message.message, error: message.error.into() })
}

impl From<&DeathCause> for common::DeathCause {
    fn from(cause: &DeathCause) -> Self {
        let kind = match cause.kind {
            DeathKind::ProcessExited => Kind::ProcessExited,
            DeathKind::CreationFailed => Kind::CreationFailed,
            DeathKind::Killed => Kind::Killed,
            DeathKind::JobFinished => Kind::JobFinished,
            DeathKind::NodeDied => Kind::NodeDied,
            DeathKind::OutOfScope => Kind::OutOfScope,
            DeathKind::ExitedByUser => Kind::ExitedByUser,
            DeathKind::Unschedulable => Kind::Unschedulable,
            DeathKind::RuntimeEnvSetupFailed => Kind::RuntimeEnvSetupFailed,
            DeathKind::PlacementGroupRemoved => Kind::PlacementGroupRemoved,
            DeathKind::OutOfMemory => Kind::OutOfMemory,
        };
        Self { kind: kind.into(), message: cause.message.clone(), error: cause.error.to_vec() }
    }
}

fn constraint(message: Option<common::SchedulingStrategy>) -> Checked<Constraint> {
    message.unwrap_or_default().try_into()
}

fn max_restarts(value: i64) -> Checked<MaxRestarts> {
    match value {
        -1 => Ok(MaxRestarts::Unlimited),
        times => u64::try_from(times)
            .map(MaxRestarts::Times)
            .map_err(|_| invalid("max_restarts", format!("has to be -1 or more, is {times}"))),
    }
}

fn max_restarts_value(max_restarts: MaxRestarts) -> i64 {
    match max_restarts {
        MaxRestarts::Unlimited => -1,
        MaxRestarts::Times(times) => i64::try_from(times).unwrap_or(i64::MAX),
    }
}

/// Checks what is needed to make an actor.
pub(crate) fn actor_spec(message: common::ActorSpec) -> Checked<ActorSpec> {
    Ok(ActorSpec {
        actor_id: id("actor_id", &message.actor_id)?,
        job_id: id("job_id", &message.job_id)?,
        name: given(message.name),
        namespace: message.namespace,
        class_name: message.class_name,
        placement_resources: resources(message.placement_resources)?,
        resources: resources(message.resources)?,
        max_restarts: max_restarts(message.max_restarts)?,
        max_task_retries: message.max_task_retries,
        max_concurrency: message.max_concurrency,
        detached: message.detached,
        class_id: message.class_id.into(),
        class_blob: message.class_blob.into(),
        creation_task: message.creation_task.into(),
        owner: message.owner.map(worker_address).transpose()?,
        constraint: constraint(message.strategy)?,
        handle_metadata: message.handle_metadata.into(),
        job_config: message.job_config.into(),
        runtime_env: message.runtime_env,
        concurrency_groups: message
            .concurrency_groups
            .into_iter()
            .map(|group| (group.name, group.max_concurrency))
            .collect(),
        is_async: message.is_async,
    })
}

impl From<&ActorSpec> for common::ActorSpec {
    fn from(spec: &ActorSpec) -> Self {
        Self {
            actor_id: spec.actor_id.to_binary(),
            job_id: spec.job_id.to_binary(),
            name: spec.name.clone().unwrap_or_default(),
            namespace: spec.namespace.clone(),
            class_name: spec.class_name.clone(),
            placement_resources: Some((&spec.placement_resources).into()),
            resources: Some((&spec.resources).into()),
            max_restarts: max_restarts_value(spec.max_restarts),
            max_task_retries: spec.max_task_retries,
            max_concurrency: spec.max_concurrency,
            detached: spec.detached,
            class_id: spec.class_id.to_vec(),
            class_blob: spec.class_blob.to_vec(),
            creation_task: spec.creation_task.to_vec(),
            owner: spec.owner.as_ref().map(Into::into),
            strategy: Some((&spec.constraint).into()),
            handle_metadata: spec.handle_metadata.to_vec(),
            job_config: spec.job_config.to_vec(),
            runtime_env: spec.runtime_env.clone(),
            concurrency_groups: spec
                .concurrency_groups
                .iter()
                .map(|(name, limit)| common::ConcurrencyGroup { name: name.clone(), max_concurrency: *limit })
                .collect(),
            is_async: spec.is_async,
        }
    }
}

/// Checks what is known of an actor.
pub(crate) fn actor_info(message: common::ActorInfo) -> Checked<ActorInfo> {
    let node_id: Option<NodeId> = given_id("node_id", &message.node_id)?;
    let phase = match message.state() {
        ActorState::Unspecified => {
            return Err(invalid("state", format!("{} is no known state", message.state)));
        }
        ActorState::DependenciesUnready | ActorState::PendingCreation | ActorState::Restarting => {
            match node_id {
                Some(node_id) => ActorPhase::Creating { node_id },
                None => ActorPhase::Waiting { reason: message.pending_reason },
            }
        }
        ActorState::Alive => ActorPhase::Alive {
            address: worker_address(required("address", message.address)?)?,
            pid: message.pid,
        },
        ActorState::Dead => ActorPhase::Dead {
            cause: death_cause(required("death_cause", message.death_cause)?)?,
            at_ms: message.death_time_ms,
        },
    };
    Ok(ActorInfo {
        actor_id: id("actor_id", &message.actor_id)?,
        job_id: id("job_id", &message.job_id)?,
        name: given(message.name),
        namespace: message.namespace,
        class_name: message.class_name,
        phase,
        num_restarts: message.num_restarts,
        max_restarts: max_restarts(message.max_restarts)?,
        max_task_retries: message.max_task_retries,
        max_concurrency: message.max_concurrency,
        detached: message.detached,
        handle_metadata: message.handle_metadata.into(),
        version: message.version,
    })
}

impl From<&ActorInfo> for common::ActorInfo {
    fn from(info: &ActorInfo) -> Self {
        let mut message = Self {
            actor_id: info.actor_id.to_binary(),
            job_id: info.job_id.to_binary(),
            name: info.name.clone().unwrap_or_default(),
            namespace: info.namespace.clone(),
            class_name: info.class_name.clone(),
            num_restarts: info.num_restarts,
            max_restarts: max_restarts_value(info.max_restarts),
            max_task_retries: info.max_task_retries,
            max_concurrency: info.max_concurrency,
            detached: info.detached,
            handle_metadata: info.handle_metadata.to_vec(),
            version: info.version,
            node_id: info.phase.node_id().map(Into::into).unwrap_or_default(),
            ..Self::default()
        };
        let pending =
            if info.num_restarts == 0 { ActorState::PendingCreation } else { ActorState::Restarting };
        let state = match &info.phase {
            ActorPhase::Waiting { reason } => {
                message.pending_reason.clone_from(reason);
                message.infeasible = reason.starts_with(INFEASIBLE);
                pending
            }
            ActorPhase::Creating { node_id } => {
                message.pending_reason = format!("node {node_id} makes it");
                pending
            }
            ActorPhase::Alive { address, pid } => {
                message.address = Some(address.into());
                message.pid = *pid;
                ActorState::Alive
            }
            ActorPhase::Dead { cause, at_ms } => {
                message.death_cause = Some(cause.into());
                message.death_time_ms = *at_ms;
                ActorState::Dead
            }
        };
        message.state = state.into();
        message
    }
}

/// Checks what is needed to reserve a placement group.
pub(crate) fn group_spec(message: common::PlacementGroupSpec) -> Checked<GroupSpec> {
    let strategy = match PbGroupStrategy::try_from(message.strategy) {
        Ok(PbGroupStrategy::Pack) => GroupStrategy::Pack,
        Ok(PbGroupStrategy::Spread) => GroupStrategy::Spread,
        Ok(PbGroupStrategy::StrictPack) => GroupStrategy::StrictPack,
        Ok(PbGroupStrategy::StrictSpread) => GroupStrategy::StrictSpread,
        Err(_) => return Err(invalid("strategy", format!("{} is not known", message.strategy))),
    };
    let bundles = message.bundles.into_iter().map(|bundle| {
        let selector = bundle.selector.unwrap_or_default().try_into()?;
        Ok(Bundle { resources: resources(bundle.resources)?, selector })
    });
    let bundles = bundles.collect::<Checked<Vec<_>>>()?;
    if bundles.is_empty() {
        return Err(WireError::Missing("bundles"));
    }
    Ok(GroupSpec {
        group_id: id("placement_group_id", &message.placement_group_id)?,
        name: given(message.name),
        namespace: message.namespace,
        strategy,
        bundles,
        detached: message.detached,
        job_id: id("job_id", &message.job_id)?,
        soft_target: given_id("soft_target_node_id", &message.soft_target_node_id)?,
    })
}

impl From<&GroupSpec> for common::PlacementGroupSpec {
    fn from(spec: &GroupSpec) -> Self {
        let strategy = match spec.strategy {
            GroupStrategy::Pack => PbGroupStrategy::Pack,
            GroupStrategy::Spread => PbGroupStrategy::Spread,
            GroupStrategy::StrictPack => PbGroupStrategy::StrictPack,
            GroupStrategy::StrictSpread => PbGroupStrategy::StrictSpread,
        };
        let bundles = spec.bundles.iter().map(|bundle| common::Bundle {
            resources: Some((&bundle.resources).into()),
            selector: Some((&bundle.selector).into()),
        });
        Self {
            placement_group_id: spec.group_id.to_binary(),
            name: spec.name.clone().unwrap_or_default(),
            namespace: spec.namespace.clone(),
            strategy: strategy.into(),
            bundles: bundles.collect(),
            detached: spec.detached,
            job_id: spec.job_id.to_binary(),
            soft_target_node_id: spec.soft_target.map(Into::into).unwrap_or_default(),
        }
    }
}

/// Checks what is known of a placement group.
pub(crate) fn group_info(message: common::PlacementGroupInfo) -> Checked<GroupInfo> {
    let nodes = message.bundle_nodes.iter().map(|bytes| given_id("bundle_nodes", bytes));
    let nodes = nodes.collect::<Checked<Vec<_>>>()?;
    let committed = message.bundles_committed.clone();
    let spec = group_spec(required("spec", message.spec.clone())?)?;
    if nodes.len() != spec.bundles.len() || committed.len() != spec.bundles.len() {
        return Err(invalid("bundle_nodes", "there has to be one for each bundle"));
    }
    // An attempt that was under way is told by its nodes; repeating it from its beginning changes nothing there.
    let under_way = nodes.iter().zip(&committed).any(|(node, committed)| node.is_some() && !committed);
    let phase = match message.state() {
        GroupState::Unspecified => {
            return Err(invalid("state", format!("{} is no known state", message.state)));
        }
        GroupState::Pending | GroupState::Rescheduling if under_way => GroupPhase::Preparing,
        GroupState::Pending | GroupState::Rescheduling => {
            GroupPhase::Pending { reason: message.pending_reason }
        }
        GroupState::Prepared => GroupPhase::Prepared,
        GroupState::Created => GroupPhase::Created,
        GroupState::Removed => {
            GroupPhase::Removed { reason: message.removed_reason, at_ms: message.removed_time_ms }
        }
    };
    Ok(GroupInfo {
        spec: Arc::new(spec),
        phase,
        nodes,
        committed,
        attempt: message.attempt,
        version: message.version,
        created_ms: message.created_time_ms,
    })
}

impl From<&GroupInfo> for common::PlacementGroupInfo {
    fn from(info: &GroupInfo) -> Self {
        let mut message = Self {
            spec: Some((&*info.spec).into()),
            bundle_nodes: info.nodes.iter().map(|node| node.map(Into::into).unwrap_or_default()).collect(),
            bundles_committed: info.committed.clone(),
            attempt: info.attempt,
            version: info.version,
            created_time_ms: info.created_ms,
            ..Self::default()
        };
        let waiting = if info.created_ms == 0 { GroupState::Pending } else { GroupState::Rescheduling };
        let state = match &info.phase {
            GroupPhase::Pending { reason } => {
                message.pending_reason.clone_from(reason);
                message.infeasible = reason.starts_with(INFEASIBLE);
                waiting
            }
            GroupPhase::Preparing => {
                "its nodes reserve its bundles".clone_into(&mut message.pending_reason);
                waiting
            }
            GroupPhase::Prepared if info.created_ms == 0 => GroupState::Prepared,
            GroupPhase::Prepared => waiting,
            GroupPhase::Created => GroupState::Created,
            GroupPhase::Removed { reason, at_ms } => {
                message.removed_reason.clone_from(reason);
                message.removed_time_ms = *at_ms;
                GroupState::Removed
            }
        };
        message.state = state.into();
        message
    }
}

/// Checks what a node says about itself.
pub(crate) fn node_spec(message: gcs::NodeInfo) -> Checked<NodeSpec> {
    Ok(NodeSpec {
        node_id: id("node_id", &message.node_id)?,
        raylet_address: message.raylet_address,
        hostname: message.hostname,
        total: resources(message.total)?,
        labels: message.labels.into_iter().collect(),
        is_head: message.is_head,
        socket_path: message.socket_path,
        metrics_port: u16::try_from(message.metrics_port).unwrap_or_default(),
    })
}

/// Checks what is known of a node.
pub(crate) fn node_info(message: gcs::NodeInfo) -> Checked<NodeInfo> {
    let state = match message.state() {
        PbNodeState::Unspecified => {
            return Err(invalid("state", format!("{} is no known state", message.state)));
        }
        PbNodeState::Alive => NodeState::Alive,
        PbNodeState::Dead => {
            NodeState::Dead { reason: message.death_reason.clone(), end_ms: message.end_time_ms }
        }
    };
    let start_ms = message.start_time_ms;
    Ok(NodeInfo { spec: node_spec(message)?, state, start_ms })
}

impl From<&NodeInfo> for gcs::NodeInfo {
    fn from(info: &NodeInfo) -> Self {
        let spec = &info.spec;
        let (state, death_reason, end_time_ms) = match &info.state {
            NodeState::Alive => (PbNodeState::Alive, String::new(), 0),
            NodeState::Dead { reason, end_ms } => (PbNodeState::Dead, reason.clone(), *end_ms),
        };
        Self {
            node_id: spec.node_id.to_binary(),
            state: state.into(),
            raylet_address: spec.raylet_address.clone(),
            hostname: spec.hostname.clone(),
            total: Some((&spec.total).into()),
            labels: spec.labels.clone().into_iter().collect(),
            is_head: spec.is_head,
            death_reason,
            start_time_ms: info.start_ms,
            end_time_ms,
            socket_path: spec.socket_path.clone(),
            metrics_port: spec.metrics_port.into(),
        }
    }
}

/// Checks what a driver says about its job.
pub(crate) fn job_spec(message: gcs::JobInfo) -> Checked<JobSpec> {
    Ok(JobSpec {
        job_id: id("job_id", &message.job_id)?,
        entrypoint: message.entrypoint,
        namespace: message.namespace,
        driver_pid: message.driver_pid,
        driver_worker_id: given_id("driver_worker_id", &message.driver_worker_id)?,
        node_id: given_id("node_id", &message.node_id)?,
        metadata: message.metadata.into_iter().collect(),
    })
}

/// Checks what is known of a job.
pub(crate) fn job_info(message: gcs::JobInfo) -> Checked<JobInfo> {
    let state = match message.end_time_ms {
        0 => JobState::Running,
        end_ms => JobState::Finished { reason: message.end_reason.clone(), end_ms },
    };
    let start_ms = message.start_time_ms;
    Ok(JobInfo { spec: job_spec(message)?, state, start_ms })
}

impl From<&JobInfo> for gcs::JobInfo {
    fn from(info: &JobInfo) -> Self {
        let spec = &info.spec;
        let (end_reason, end_time_ms) = match &info.state {
            JobState::Running => (String::new(), 0),
            JobState::Finished { reason, end_ms } => (reason.clone(), (*end_ms).max(1)),
        };
        Self {
            job_id: spec.job_id.to_binary(),
            entrypoint: spec.entrypoint.clone(),
            namespace: spec.namespace.clone(),
            driver_pid: spec.driver_pid,
            driver_worker_id: spec.driver_worker_id.map(Into::into).unwrap_or_default(),
            node_id: spec.node_id.map(Into::into).unwrap_or_default(),
            start_time_ms: info.start_ms,
            end_time_ms,
            end_reason,
            metadata: spec.metadata.clone().into_iter().collect(),
        }
    }
}

/// Checks a node's report of its resources.
pub(crate) fn node_usage(message: gcs::NodeUsage) -> Checked<NodeUsage> {
    let demand = message.demand.into_iter().map(|demand| {
        let shape = resources(demand.shape)?;
        Ok(Demand { shape, count: demand.count, infeasible: demand.infeasible })
    });
    Ok(NodeUsage {
        node_id: id("node_id", &message.node_id)?,
        total: resources(message.total)?,
        available: resources(message.available)?,
        version: message.version,
        demand: demand.collect::<Checked<_>>()?,
    })
}

impl From<&NodeUsage> for gcs::NodeUsage {
    fn from(usage: &NodeUsage) -> Self {
        let demand = usage.demand.iter().map(|demand| gcs::Demand {
            shape: Some((&demand.shape).into()),
            count: demand.count,
            infeasible: demand.infeasible,
        });
        Self {
            node_id: usage.node_id.to_binary(),
            total: Some((&usage.total).into()),
            available: Some((&usage.available).into()),
            version: usage.version,
            demand: demand.collect(),
        }
    }
}

impl From<&Event> for gcs::Event {
    fn from(event: &Event) -> Self {
        use gcs::event::Event as Kind;
        let kind = match event {
            Event::Node(info) => Kind::Node((&**info).into()),
            Event::Actor(info) => Kind::Actor((&**info).into()),
            Event::PlacementGroup(info) => Kind::PlacementGroup((&**info).into()),
            Event::Job(info) => Kind::Job((&**info).into()),
            Event::Usage(usage) => Kind::Usage((&**usage).into()),
        };
        Self { event: Some(kind) }
    }
}

impl From<&Snapshot> for gcs::Event {
    fn from(snapshot: &Snapshot) -> Self {
        fn all<'a, T: 'a, M: From<&'a T>>(items: &'a [Arc<T>]) -> Vec<M> {
            items.iter().map(|item| (&**item).into()).collect()
        }
        let snapshot = gcs::Snapshot {
            nodes: all(&snapshot.nodes),
            actors: all(&snapshot.actors),
            placement_groups: all(&snapshot.groups),
            jobs: all(&snapshot.jobs),
            usages: snapshot.usages.iter().map(Into::into).collect(),
        };
        Self { event: Some(gcs::event::Event::Snapshot(snapshot)) }
    }
}
