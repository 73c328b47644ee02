package process

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"

	"memfs/mm"
)

// Machine is what processes run on: one memory manager, a boot policy for DEP, and the processes there are.
type Machine struct {
	sys      *mm.System
	shooter  *shooter
	listener Listener
	files    Files
	waiting  chan struct{} // has a token of every call that may wait for the host
	queue    atomic.Int64  // calls that wait to be let through

	violations atomic.Uint64

	objects sync.Mutex // a leaf lock
	// +checklocks:objects
	names map[string]kernelObject
	// +checklocks:objects
	sections map[*Section]struct{} // all that there are
	// +checklocks:objects
	lastSection uint64
	// +checklocks:objects
	shares map[*mm.Segment]*shareAccess // of files that processes have open

	images sync.Mutex // comes before objects
	// +checklocks:images
	areas map[*mm.Segment]*controlArea

	mu sync.Mutex
	// +checklocks:mu
	policy Policy
	// +checklocks:mu
	optIn map[string]bool
	// +checklocks:mu
	optOut map[string]bool
	// +checklocks:mu
	processes map[uint32]*Process
	// +checklocks:mu
	lastID uint32
}

// Listener is told of events worth a log line. Each func may be nil; none is called with a lock held.
type Listener struct {
	// Violation: a process tried to execute memory that is not executable.
	Violation func(p *Process, address uint64)
}

// NewMachine makes a machine without processes on sys, booted with a DEP policy.
func NewMachine(sys *mm.System, policy Policy, l Listener) *Machine {
	return &Machine{
		sys: sys, shooter: newShooter(sys), policy: policy, listener: l, processes: make(map[uint32]*Process),
		optIn: make(map[string]bool), optOut: make(map[string]bool), files: noFiles{sys}, names: make(map[string]kernelObject),
		shares:  make(map[*mm.Segment]*shareAccess),
		waiting: make(chan struct{}, hostWaits),
	}
}

// System is the memory manager.
func (m *Machine) System() *mm.System { return m.sys }

// Start makes a process. CommitmentLimit: its records do not fit.
func (m *Machine) Start(i Image) (*Process, error) {
	m.mu.Lock()
	m.lastID += 4 // as Windows numbers them
	id := m.lastID
	m.mu.Unlock()
	p, err := m.newProcess(id, i)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.processes[id] = p
	return p, nil
}

// End ends a process: all its frames, slots and commit go back before it returns, and nobody maps its memory any more. Ending
// it again does nothing.
func (m *Machine) End(p *Process) {
	m.mu.Lock()
	_, alive := m.processes[p.id]
	delete(m.processes, p.id)
	m.mu.Unlock()
	if !alive {
		return
	}
	p.end()
	if w := p.window.Load(); w != nil {
		w.close()
	}
}

// Process finds a process by its number, nil if there is none.
func (m *Machine) Process(id uint32) *Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.processes[id]
}

// Processes lists the processes by number.
func (m *Machine) Processes() []*Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*Process, 0, len(m.processes))
	for _, p := range m.processes {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *Process) int { return cmp.Compare(a.id, b.id) })
	return all
}

// RecordBytes is what the processes' records take.
func (m *Machine) RecordBytes() (n uint64) {
	for _, p := range m.Processes() {
		p.mu.Lock()
		n += uint64(p.recorded)
		p.mu.Unlock()
	}
	return n
}
