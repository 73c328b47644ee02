package process

// The system process is the kernel side of the machine: what the memory manager itself needs, as regions of the kernel's half
// of the address space. Their sizes are those of the records that there are at the moment. The memory is never paged, never
// executable, and closed to programs: every access of one is an access violation.

// SystemRegion is one of its regions.
type SystemRegion struct {
	Use   string
	Base  uint64
	Bytes uint64
}

// Where the kernel's regions begin, as in Windows 7 for x64 (Windows Internals 6 ch. 10, "x64 address space layouts").
const (
	KernelLow          = 0xFFFF_8000_0000_0000
	KernelHigh         = 0xFFFF_FFFF_FFFE_FFFF
	KernelStacksBase   = 0xFFFF_F880_0000_0000 // among the system PTEs
	PagedPoolBase      = 0xFFFF_F8A0_0000_0000
	SessionPoolBase    = 0xFFFF_F900_0000_0000
	PFNDatabaseBase    = 0xFFFF_FA80_0000_0000
	NonPagedPoolBase   = 0xFFFF_FB00_0000_0000
	systemRegionsBytes = 5 * (vadBytes + runBytes) // at most
)

// StartSystem makes the system process, whose regions are, whenever somebody looks, those that the function returns: ascending,
// at most five. CommitmentLimit: its records do not fit.
func (m *Machine) StartSystem(regions func() []SystemRegion) (*Process, error) {
	if err := m.sys.ChargeRecord(systemRegionsBytes); err != nil {
		return nil, win32(err)
	}
	p, err := m.Start(Image{Name: "System", Arch: X64, System: true, Limits: Limits{Commit: 1, Virtual: 1}})
	if err != nil {
		m.sys.ReleaseRecord(systemRegionsBytes)
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.recorded += systemRegionsBytes
	p.low, p.high, p.regions = KernelLow, KernelHigh, regions
	p.dep = depState{on: true, permanent: true, noThunks: true}
	p.vads, p.virtual, p.virtualPeak = nil, 0, 0
	return p, nil
}

// IsSystem says whether this is the system process.
func (p *Process) IsSystem() bool { return p.regions != nil }

// survey brings the allocations of the system process up to date; of others they are.
func (p *Process) survey() {
	if p.regions == nil {
		return
	}
	regions := p.regions()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return
	}
	p.vads, p.virtual = p.vads[:0:0], 0
	for _, r := range regions {
		pages := max(1, (r.Bytes+PageSize-1)>>pageShift)
		v := newVAD(r.Base>>pageShift, r.Base>>pageShift+pages-1, ReadWrite)
		v.system, v.use = true, r.Use
		v.runs[0].attr = attr{committed: true, protection: ReadWrite}
		p.insert(v)
	}
}
