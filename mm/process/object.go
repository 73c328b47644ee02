package process

import (
	"maps"
	"slices"
	"strings"
	"sync"
)

// Handle names an object of one process.
type Handle uint64

// NoHandle is INVALID_HANDLE_VALUE.
const NoHandle = ^Handle(0)

// kernelObject is what handles name. An object lives until its last reference: handles, and what its kind has besides, such
// as views. Its name goes with the last handle already. Machine.objects guards the counts.
type kernelObject interface {
	base() *object
	// destroy ends the object. It is called once, with no lock held.
	destroy()
	// closed is called when the last handle has been closed, with no lock held; unnamed when the name has gone with it.
	closed()
	unnamed()
	// grant is the access of a new handle that is made from one with access has and asks for want.
	grant(has, want uint32) uint32
}

// object is what all kinds have.
type object struct {
	name    string // Local\ cut off; empty = none
	handles int
	refs    int // handles included
}

func (o *object) base() *object { return o }
func (o *object) closed()       {}
func (o *object) unnamed()      {}

// canonical is a name without its prefix: Local\ is the session that all processes are in. Names are case-sensitive.
func canonical(name string) string {
	if rest, ok := strings.CutPrefix(name, `Local\`); ok {
		return rest
	}
	return name
}

// sectionName is the canonical name of a section. PathNotFound: backslashes separate directories, of which there are no others;
// InvalidHandle for the directories themselves.
func sectionName(name string) (string, error) {
	rest := canonical(name)
	bare, _ := strings.CutPrefix(rest, `Global\`)
	switch {
	case bare == "" && name != "":
		return "", InvalidHandle
	case strings.Contains(bare, `\`):
		return "", PathNotFound
	}
	return rest, nil
}

// lookUp finds an object by name and takes a reference for a handle to be; nil if there is none.
func (m *Machine) lookUp(name string) kernelObject {
	m.objects.Lock()
	defer m.objects.Unlock()
	o := m.names[name]
	if o != nil {
		o.base().handles++
		o.base().refs++
	}
	return o
}

// publish enters a new object, with one reference for its first handle. If the name is taken the object that has it is
// returned instead, with such a reference, and o is the caller's to destroy.
func (m *Machine) publish(o kernelObject, name string) (there kernelObject) {
	m.objects.Lock()
	defer m.objects.Unlock()
	b := o.base()
	if name != "" {
		if there = m.names[name]; there != nil {
			there.base().handles++
			there.base().refs++
			return there
		}
		m.names[name] = o
		b.name = name
	}
	b.handles, b.refs = b.handles+1, b.refs+1
	if s, ok := o.(*Section); ok {
		m.listed(s)
	}
	return nil
}

// reference takes a reference that is no handle.
func (m *Machine) reference(o kernelObject) {
	m.objects.Lock()
	defer m.objects.Unlock()
	o.base().refs++
}

// dereference drops a reference, and a handle if it was one's. The last one ends the object. No lock may be held.
func (m *Machine) dereference(o kernelObject, handle bool) {
	m.objects.Lock()
	b := o.base()
	b.refs--
	closed, unnamed := false, false
	if handle {
		b.handles--
		closed = b.handles == 0
		// An object that views kept may have got a handle again after its name had gone, and be another's by now.
		if b.handles == 0 && b.name != "" && m.names[b.name] == o {
			delete(m.names, b.name)
			unnamed = true
		}
	}
	gone := b.refs == 0
	m.objects.Unlock()
	if closed {
		o.closed()
	}
	if unnamed {
		o.unnamed()
	}
	if gone {
		o.destroy()
	}
}

// Sections lists the sections that have a name now, by name.
func (m *Machine) Sections() (list []*Section) {
	m.objects.Lock()
	defer m.objects.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.names)) {
		if s, ok := m.names[name].(*Section); ok {
			list = append(list, s)
		}
	}
	return list
}

// --- handles -------------------------------------------------------------------------------------------------------------

// handle is an entry of a process's handle table.
type handle struct {
	object  kernelObject
	access  uint32
	inherit bool // child processes that inherit handles get this one
	protect bool // it cannot be closed
}

// handleTable is a process's handles.
type handleTable struct {
	mu sync.Mutex // comes before Machine.objects, and with no other lock
	// +checklocks:mu
	open map[Handle]handle
	// +checklocks:mu
	next Handle // no lower one is free
	// +checklocks:mu
	closed bool // no handle can be opened any more
}

// handleBytes is what an entry costs in records, as charged.
const handleBytes = 96

// firstHandle is the lowest handle; handles are multiples of 4.
const firstHandle Handle = 0x40

// open enters a handle, which takes over a reference of the caller's; on an error the reference is dropped.
func (p *Process) open(h handle) (Handle, error) {
	m := p.machine
	if err := m.sys.ChargeRecord(handleBytes); err != nil {
		m.dereference(h.object, true)
		return 0, win32(err)
	}
	p.handles.mu.Lock()
	if p.handles.closed {
		p.handles.mu.Unlock()
		m.sys.ReleaseRecord(handleBytes)
		m.dereference(h.object, true)
		return 0, AccessDenied
	}
	if p.handles.open == nil {
		p.handles.open = make(map[Handle]handle)
	}
	n := max(p.handles.next, firstHandle)
	for p.handles.open[n].object != nil {
		n += 4
	}
	p.handles.next = n + 4
	p.handles.open[n] = h
	p.handles.mu.Unlock()
	return n, nil
}

// entryOf finds a handle's entry. InvalidHandle.
func (p *Process) entryOf(h Handle) (handle, error) {
	p.handles.mu.Lock()
	defer p.handles.mu.Unlock()
	if e, ok := p.handles.open[h&^3]; ok && h != NoHandle {
		return e, nil
	}
	return handle{}, InvalidHandle
}

// use finds a handle's object of type T, with a reference that done drops. InvalidHandle: no such handle, or another kind.
func use[T kernelObject](p *Process, h Handle) (o T, access uint32, done func(), err error) {
	p.handles.mu.Lock()
	defer p.handles.mu.Unlock()
	e := p.handles.open[h&^3]
	o, ok := e.object.(T)
	if !ok || h == NoHandle {
		return o, 0, nil, InvalidHandle
	}
	p.machine.reference(o)
	return o, e.access, func() { p.machine.dereference(o, false) }, nil
}

// Close is CloseHandle.
func (p *Process) Close(h Handle) error {
	p.handles.mu.Lock()
	e, ok := p.handles.open[h&^3]
	if h == NoHandle || e.protect {
		ok = false
	}
	if ok {
		delete(p.handles.open, h&^3)
		p.handles.next = min(p.handles.next, h&^3)
	}
	p.handles.mu.Unlock()
	if !ok {
		return InvalidHandle
	}
	p.machine.sys.ReleaseRecord(handleBytes)
	p.machine.dereference(e.object, true)
	return nil
}

// Flags of SetHandleInformation.
const (
	HandleFlagInherit = 1
	HandleFlagProtect = 2 // the handle cannot be closed
)

// HandleFlags is GetHandleInformation.
func (p *Process) HandleFlags(h Handle) (flags uint32, err error) {
	e, err := p.entryOf(h)
	if e.inherit {
		flags |= HandleFlagInherit
	}
	if e.protect {
		flags |= HandleFlagProtect
	}
	return flags, err
}

// SetHandleFlags is SetHandleInformation: of the flags in mask. InvalidHandle.
func (p *Process) SetHandleFlags(h Handle, mask, flags uint32) error {
	if mask&^(HandleFlagInherit|HandleFlagProtect) != 0 {
		return InvalidParameter
	}
	p.handles.mu.Lock()
	defer p.handles.mu.Unlock()
	e, ok := p.handles.open[h&^3]
	if !ok || h == NoHandle {
		return InvalidHandle
	}
	if mask&HandleFlagInherit != 0 {
		e.inherit = flags&HandleFlagInherit != 0
	}
	if mask&HandleFlagProtect != 0 {
		e.protect = flags&HandleFlagProtect != 0
	}
	p.handles.open[h&^3] = e
	return nil
}

// Options of DuplicateHandle.
const (
	DuplicateCloseSource = 1
	DuplicateSameAccess  = 2
)

// Duplicate is DuplicateHandle from this process into another one, or the same. access is what the new handle can do, never
// more than the object's kind knows. InvalidHandle.
func (p *Process) Duplicate(h Handle, to *Process, access uint32, inherit bool, options uint32) (Handle, error) {
	e, err := p.entryOf(h)
	if err != nil {
		return 0, err
	}
	if options&DuplicateSameAccess == 0 {
		e.access = e.object.grant(e.access, access)
	}
	e.inherit, e.protect = inherit, false
	if !p.machine.keep(e.object) {
		return 0, InvalidHandle
	}
	n, err := to.open(e)
	if err != nil {
		return 0, err
	}
	if options&DuplicateCloseSource != 0 {
		_ = p.Close(h) // it was there a moment ago; somebody else may have closed it
	}
	return n, nil
}

// inherit gives this process another's handle, under the same number.
func (p *Process) inherit(from *Process, h Handle) error {
	e, err := from.entryOf(h)
	if err != nil {
		return err
	}
	m := p.machine
	if !m.keep(e.object) {
		return InvalidHandle
	}
	if err := m.sys.ChargeRecord(handleBytes); err != nil {
		m.dereference(e.object, true)
		return win32(err)
	}
	p.handles.mu.Lock()
	_, taken := p.handles.open[h]
	if ok := !taken && !p.handles.closed; ok {
		if p.handles.open == nil {
			p.handles.open = make(map[Handle]handle)
		}
		p.handles.open[h] = e
		p.handles.mu.Unlock()
		return nil
	}
	p.handles.mu.Unlock()
	m.sys.ReleaseRecord(handleBytes)
	m.dereference(e.object, true)
	return AccessDenied
}

// keep takes a reference for another handle of an object that may be on its way out; false if it is.
func (m *Machine) keep(o kernelObject) bool {
	m.objects.Lock()
	defer m.objects.Unlock()
	b := o.base()
	if b.refs == 0 {
		return false
	}
	b.handles, b.refs = b.handles+1, b.refs+1
	return true
}

// closeHandles closes all handles, for good.
func (p *Process) closeHandles() {
	p.handles.mu.Lock()
	all := p.handles.open
	p.handles.open, p.handles.closed = nil, true
	p.handles.mu.Unlock()
	for _, e := range all {
		p.machine.sys.ReleaseRecord(handleBytes)
		p.machine.dereference(e.object, true)
	}
}
