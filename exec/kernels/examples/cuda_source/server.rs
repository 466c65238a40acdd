//! A device that runs nothing: it writes down the CUDA C++ of every kernel that is launched on it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use cubecl::prelude::*;
use cubecl_common::bytes::Bytes;
use cubecl_common::device::{DeviceId, DeviceService, ServiceId};
use cubecl_common::profile::{ProfileDuration, TimingMethod};
use cubecl_cpp::register_supported_types;
use cubecl_cpp::shared::{CompilationOptions, CppCompiler, CppSupportedFeatures};
use cubecl_cpp::target::Cuda;
use cubecl_environment::backtrace::BackTrace;
use cubecl_environment::future::DynFut;
use cubecl_environment::stream::StreamId;
use cubecl_ir::features::Plane;
use cubecl_ir::{DeviceIdentity, DeviceProperties, HardwareProperties, MemoryDeviceProperties, TargetProperties};
use cubecl_server::allocator::ContiguousMemoryLayoutPolicy;
use cubecl_server::compiler::Compiler;
use cubecl_server::dry_run::LaunchMode;
use cubecl_server::kernel::{CubeKernel, define_kernel};
use cubecl_server::logging::ServerLogger;
use cubecl_server::memory_management::{ManagedMemoryHandle, MemoryAllocationMode, StreamMemoryReport};
use cubecl_server::server::{
    BufferBinding, CopyDescriptor, CubeCount, KernelArguments, ProfileError, ProfilingToken, Server,
    ServerCommunication, ServerError, ServerStorage, ServerUtilities,
};
use cubecl_server::storage::{BytesResource, BytesStorage, ManagedResource};

/// What the device pretends to be.
#[derive(Debug, Clone, Copy)]
pub struct Architecture {
    /// As in `sm_90`.
    pub version: u32,
    /// Shared memory that a cube may have, in bytes.
    pub shared_memory: usize,
}

/// Where sources go, and what the device is; set before the first client is made.
pub static SETTINGS: OnceLock<(PathBuf, Architecture)> = OnceLock::new();
/// Kernels written so far, or why one could not be.
pub static WRITTEN: Mutex<Vec<Result<String, String>>> = Mutex::new(Vec::new());

#[derive(Debug)]
pub struct Recorder {
    utilities: Arc<ServerUtilities>,
}

impl Recorder {
    pub fn client() -> cubecl::client::Client {
        cubecl::client::Client::load::<Self>(DeviceId { type_id: 0, index_id: 0 })
    }

    fn options() -> CompilationOptions {
        let (_, architecture) = SETTINGS.get().expect("settings come first");
        // As cubecl-cuda sets them for a device of this architecture.
        let supports_features = CppSupportedFeatures {
            fast_math: true,
            dp4a: true,
            grid_constants: true,
            fast_tanh: true,
            clusters: architecture.version >= 90,
            elect_sync: architecture.version >= 90,
        };
        CompilationOptions { supports_features, ..CompilationOptions::default() }
    }
}

fn refused() -> ServerError {
    ServerError::Generic { reason: "this device runs nothing".into(), backtrace: BackTrace::capture() }
}

impl DeviceService for Recorder {
    fn init(device: DeviceId) -> Self {
        let (_, architecture) = SETTINGS.get().expect("settings come first");
        let hardware = HardwareProperties {
            load_width: 128,
            vector_register_count: None,
            plane_size_min: 32,
            plane_size_max: 32,
            max_bindings: 1024,
            max_shared_memory_size: architecture.shared_memory,
            max_cube_count: (i32::MAX as u32, u16::MAX.into(), u16::MAX.into()),
            max_units_per_cube: 1024,
            max_cube_dim: (1024, 1024, 64),
            num_streaming_multiprocessors: None,
            num_tensor_cores: None,
            min_tensor_cores_dim: None,
            num_cpu_cores: None,
            last_level_cache_size: None,
            max_vector_size: VectorSize::MAX,
            cube_mma_reserved_shared_memory: 0,
        };
        let identity = DeviceIdentity { name: "recorder".into(), fingerprint: "recorder".into(), physical: None };
        let memory = MemoryDeviceProperties::new(1 << 36, 512);
        let mut properties =
            DeviceProperties::new(Default::default(), memory, hardware, TimingMethod::System, identity);
        register_supported_types(&mut properties);
        properties.features.plane.insert(Plane::Ops);
        properties.features.plane.insert(Plane::Sync);
        properties.features.plane.insert(Plane::NonUniformControlFlow);
        properties.features.alignment = true;
        let (utilities, _) = ServerUtilities::init(
            ServiceId::of::<Self>(device),
            "recorder",
            properties,
            TargetProperties::default(),
            Arc::new(ServerLogger::default()),
            ContiguousMemoryLayoutPolicy::new(4),
        );
        Self { utilities: Arc::new(utilities) }
    }

    fn utilities(&self) -> Arc<dyn std::any::Any + Send + Sync> {
        self.utilities.clone()
    }
}

impl ServerCommunication for Recorder {}

impl Server for Recorder {
    #[expect(unsafe_code, reason = "the trait has it so")]
    unsafe fn launch(
        &mut self,
        kernel: Box<dyn CubeKernel>,
        _count: CubeCount,
        _arguments: KernelArguments,
        _stream: StreamId,
        _mode: LaunchMode,
    ) {
        let path: Vec<&str> = kernel.name().split('<').next().unwrap_or_default().split("::").collect();
        // mloc_kernels::attention::forward::forward_kernel::ForwardKernel is attention_forward_forward_kernel.
        let name = path[1..path.len().saturating_sub(1)].join("_");
        let compiled = define_kernel(&*kernel)
            .and_then(|definition| CppCompiler::<Cuda>::default().compile(definition, &Self::options()));
        let mut written = WRITTEN.lock().expect("nobody panics with it");
        let (folder, _) = SETTINGS.get().expect("settings come first");
        let outcome = compiled.map_err(|why| format!("{name}: {why}")).and_then(|compiled| {
            let file = format!("{:03}_{name}.cu", written.len());
            std::fs::write(folder.join(&file), compiled.to_string()).map_err(|why| format!("{file}: {why}"))?;
            Ok(format!("{file}: {} bytes of shared memory", compiled.shared_memory_size))
        });
        written.push(outcome);
    }

    fn logger(&self) -> Arc<ServerLogger> {
        self.utilities.logger.clone()
    }

    fn utilities(&self) -> Arc<ServerUtilities> {
        self.utilities.clone()
    }

    fn initialize_memory(&mut self, _: ManagedMemoryHandle, _: u64, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn read(&mut self, _: Vec<CopyDescriptor>, _: StreamId) -> DynFut<Result<Vec<Bytes>, ServerError>> {
        Box::pin(async { Err(refused()) })
    }

    fn write(&mut self, _: Vec<(CopyDescriptor, Bytes)>, _: StreamId) {}

    fn sync(&mut self, _: Vec<BufferBinding>, _: StreamId) -> DynFut<Result<(), ServerError>> {
        Box::pin(async { Ok(()) })
    }

    fn check(&mut self, _: Vec<BufferBinding>, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn flush(&mut self, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn memory_report(&mut self, _: StreamId) -> Option<StreamMemoryReport> {
        None
    }

    fn memory_cleanup(&mut self, _: StreamId) -> Result<(), ServerError> {
        Ok(())
    }

    fn start_profile(&mut self, _: StreamId) -> Result<ProfilingToken, ServerError> {
        Err(refused())
    }

    fn end_profile(&mut self, _: StreamId, _: ProfilingToken) -> Result<ProfileDuration, ProfileError> {
        Err(ProfileError::NotRegistered { backtrace: BackTrace::capture() })
    }

    fn allocation_mode(&mut self, _: MemoryAllocationMode, _: StreamId) {}
}

impl ServerStorage for Recorder {
    type Storage = BytesStorage;

    fn get_resource(&mut self, _: BufferBinding, _: StreamId) -> Result<ManagedResource<BytesResource>, ServerError> {
        Err(refused())
    }
}
