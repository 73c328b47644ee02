package process

import (
	"slices"

	"memfs/mm"
)

// MemoryStatus is what GlobalMemoryStatusEx says (MEMORYSTATUSEX), in bytes. Physical memory is the machine's frames; the
// page file is, as there, what can be committed.
type MemoryStatus struct {
	Load                       uint32 // percent of physical memory in use
	TotalPhys, AvailPhys       uint64
	TotalPageFile, AvailPage   uint64
	TotalVirtual, AvailVirtual uint64
}

// MemoryStatus is GlobalMemoryStatusEx.
func (p *Process) MemoryStatus() MemoryStatus {
	s := p.machine.sys.Snapshot()
	available := s.Zeroed + s.Free
	for _, n := range s.Standby {
		available += n
	}
	m := MemoryStatus{
		TotalPhys: s.Frames << pageShift, AvailPhys: available << pageShift,
		TotalPageFile: s.CommitLimit << pageShift, AvailPage: (s.CommitLimit - min(s.CommitLimit, s.Commit)) << pageShift,
		TotalVirtual: p.high - p.low + 1,
	}
	m.Load = uint32((m.TotalPhys - m.AvailPhys) / max(m.TotalPhys/100, 1))
	p.mu.Lock()
	defer p.mu.Unlock()
	m.AvailVirtual = m.TotalVirtual - min(m.TotalVirtual, p.virtual<<pageShift)
	return m
}

// Counters is what GetProcessMemoryInfo says (PROCESS_MEMORY_COUNTERS_EX), in bytes.
type Counters struct {
	PageFaults                      uint64
	WorkingSet, PeakWorkingSet      uint64
	Pagefile, PeakPagefile, Private uint64 // commit charge
	Virtual, PeakVirtual            uint64
	Locked                          uint64
}

// MemoryInfo is GetProcessMemoryInfo, and the sizes of the address space.
func (p *Process) MemoryInfo() Counters {
	p.survey()
	now, peak, faults := p.space.WorkingSet()
	committed := p.space.Committed() << pageShift
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.regions != nil {
		n := p.virtual << pageShift
		peak := p.virtualPeak << pageShift
		return Counters{WorkingSet: n, PeakWorkingSet: peak, Pagefile: n, PeakPagefile: peak, Private: n, Virtual: n, PeakVirtual: peak, Locked: n}
	}
	return Counters{
		PageFaults: faults, WorkingSet: now << pageShift, PeakWorkingSet: peak << pageShift,
		Pagefile: committed, PeakPagefile: max(p.commitPeak<<pageShift, committed), Private: committed,
		Virtual: p.virtual << pageShift, PeakVirtual: p.virtualPeak << pageShift, Locked: p.space.Locked() << pageShift,
	}
}

// Guards is how many guard page exceptions there were.
func (p *Process) Guards() uint64 { return p.guards.Load() }

// Holdings is where the pages of the process are.
func (p *Process) Holdings() mm.Holdings {
	h := p.space.Holdings()
	p.mu.Lock()
	awe := p.awe
	p.mu.Unlock()
	if awe != nil {
		h.Add(awe.space.Holdings())
	}
	return h
}

// Owns says whether a private memory is the process's: that of its address space, or that of its physical pages.
func (p *Process) Owns(s *mm.Space) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.space == s || p.awe != nil && p.awe.space == s
}

// Pages calls f for every committed page, in order, until f returns false: for pagemap and smaps.
func (p *Process) Pages(f func(mm.PageInfo) bool) { p.space.Each(0, everything, f) }

// NotificationKind is what a memory resource notification is about.
type NotificationKind uint32

// The kinds.
const (
	LowMemory  NotificationKind = 0
	HighMemory NotificationKind = 1
)

// Notified is QueryMemoryResourceNotification: whether available memory is low (a thirty-second of the frames, or 32 MiB,
// whichever is less) or plenty (three times that). InvalidParameter for another kind.
func (m *Machine) Notified(kind NotificationKind) (bool, error) {
	if !slices.Contains([]NotificationKind{LowMemory, HighMemory}, kind) {
		return false, InvalidParameter
	}
	r := m.sys.Resource()
	if kind == LowMemory {
		return r.Low(), nil
	}
	return r.High(), nil
}
