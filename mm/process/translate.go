package process

import (
	"fmt"
	"strings"

	"memfs/mm"
)

// Level is one step of a page-table walk.
type Level struct {
	Name  string // of the table, in the architecture's words
	Index uint64 // of the entry in it
	// Entry is the entry as the processor would see it, 0 where there is none. The tables themselves are not kept: entries
	// are computed from the process's records, and tables get physical addresses that no frame has.
	Entry uint64
	Bits  []string // names of the bits that are set
}

// Translation is how a virtual address becomes a physical one, or where the walk ends.
type Translation struct {
	Address  uint64
	Arch     Arch
	Levels   []Level
	Valid    bool
	Frame    int64  // −1 = none
	Physical uint64 // physical address, if valid
	Why      string // where the walk ends, and what a touch would lead to; empty if valid
}

// level says which bits of an address index a table.
type level struct {
	name  string
	shift uint
	width uint
}

var levels = map[Arch][]level{
	X64:   {{"PML4", 39, 9}, {"PDPT", 30, 9}, {"PD", 21, 9}, {"PT", 12, 9}},
	X86:   {{"PDPT", 30, 2}, {"PD", 21, 9}, {"PT", 12, 9}}, // PAE
	ARM64: {{"L0", 39, 9}, {"L1", 30, 9}, {"L2", 21, 9}, {"L3", 12, 9}},
}

// Bits of entries.
const (
	x86Present = 1 << iota
	x86Write
	x86User
	x86WriteThrough
	x86CacheDisable
	x86Accessed
	x86Dirty
	x86PAT
	x86NX = 1 << 63

	armValid    = 1 << 0
	armTable    = 1 << 1 // also set in the last level's page entries
	armNormal   = 0 << 2 // AttrIndx
	armDevice   = 1 << 2
	armCombine  = 2 << 2
	armUser     = 1 << 6 // AP[1]
	armReadOnly = 1 << 7 // AP[2]
	armShared   = 3 << 8 // inner shareable
	armAccess   = 1 << 10
	armNotGlob  = 1 << 11
	armDBM      = 1 << 51
	armPXN      = 1 << 53
	armUXN      = 1 << 54
)

// tableBase is where the tables appear to lie: above all frames, by level.
const tableBase = 0x80_0000_0000

// Translate walks the page tables for an address, as the processor would at this moment. It changes nothing.
func (p *Process) Translate(addr uint64) Translation {
	t := Translation{Address: addr, Arch: p.image.Arch, Frame: -1}
	table := levels[t.Arch]
	p.survey()
	if addr > p.high || addr < p.low && p.regions != nil {
		t.Why = "not a user address: a touch is an access violation"
		return t
	}
	page := addr >> pageShift
	a, info, found, out := p.look(page)
	for i, l := range table {
		step := Level{Name: l.name, Index: addr >> l.shift & (1<<l.width - 1)}
		last := i == len(table)-1
		switch {
		case last && !out && t.valid(a, info, found):
			t.Valid, t.Frame = true, info.Frame
			t.Physical = uint64(info.Frame)<<pageShift | addr&(PageSize-1)
			step.Entry = p.entry(a.protection, info)
		case !last && p.tableExists(page, table[i+1].shift+table[i+1].width-pageShift):
			step.Entry = p.tableEntry(addr, l.shift, uint64(i))
		}
		step.Bits = bitNames(t.Arch, step.Entry, last)
		t.Levels = append(t.Levels, step)
		if step.Entry == 0 {
			t.Why = fmt.Sprintf("%s entry 0x%x is not valid: %s", l.name, step.Index, why(a, info, found, out))
			break
		}
	}
	return t
}

// look gathers what is known of a page at one moment. out says that it shows a page of a section that is not in the process's
// working set, wherever it is otherwise.
func (p *Process) look(page uint64) (a attr, info mm.PageInfo, found *vad, out bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if found = p.find(page); found == nil {
		return
	}
	a = found.at(page)
	info = mm.PageInfo{State: mm.StateZero, Frame: -1}
	switch {
	case found.physical && p.awe.mapped(page):
		a = attr{committed: true, protection: ReadWrite}
		info = p.awe.space.Page(p.awe.at[page])
	case found.view != nil:
		a.committed, _ = found.view.state(page, page)
		info = p.space.Page(page)
		if out = a.committed && !a.copied && !info.Shared; out {
			info = found.view.at(page).shown.Page(page)
		}
	case !found.physical && a.committed:
		info = p.space.Page(page)
	}
	return a, info, found, out
}

// valid says whether the processor would find the page.
func (t *Translation) valid(a attr, info mm.PageInfo, v *vad) bool {
	return v != nil && a.committed && !a.offered && a.protection.Readable() && a.protection&Guard == 0 &&
		info.State == mm.StateActive
}

// why is what the memory manager would say to a touch of a page that is not valid.
func why(a attr, info mm.PageInfo, v *vad, out bool) string {
	switch {
	case v == nil:
		return "the address is free: a touch is an access violation"
	case v.system && v.use != "KUSER_SHARED_DATA":
		return "the kernel's own memory, in no frame of its own: a touch by a program is an access violation"
	case v.system:
		return "the system's shared page: always there, and in no frame of the machine"
	case v.physical:
		return "no physical page is mapped there: a touch is an access violation"
	case !a.committed:
		return "reserved: a touch is an access violation"
	case a.offered:
		return "offered: a touch is an access violation until it is reclaimed"
	case a.protection&Guard != 0:
		return "guard page: a touch is a guard page exception"
	case !a.protection.Readable():
		return "no access: a touch is an access violation"
	}
	switch info.State {
	case mm.StateActive:
		if out {
			return fmt.Sprintf("prototype PTE, in another working set, frame %d: a touch is a soft fault", info.Frame)
		}
	case mm.StateZero, mm.StateCommitted:
		return "demand zero: a touch takes a frame of zeros"
	case mm.StatePaged:
		return fmt.Sprintf("paged out to page file %d slot %d: a touch is a hard fault", info.PageFile, info.Slot)
	case mm.StateTransition:
		return "in transition, under I/O: a touch waits for it"
	}
	return fmt.Sprintf("in transition, frame %d: a touch is a soft fault", info.Frame)
}

// tableExists says whether there is a table that maps 1 << shift pages around page: the manager makes one when the first
// page in its reach has been committed.
func (p *Process) tableExists(page uint64, shift uint) bool {
	first := page >> shift << shift
	last := first + 1<<shift - 1
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := p.after(first); i < len(p.vads) && p.vads[i].first <= last; i++ {
		v := p.vads[i]
		if v.physical {
			return true
		}
		if !v.all(max(first, v.first), min(last, v.last), func(a attr) bool { return !a.committed }) {
			return true
		}
	}
	return false
}

// tableEntry is an entry that points to the next table.
func (p *Process) tableEntry(addr uint64, shift uint, depth uint64) uint64 {
	at := tableBase*(depth+1) + addr>>shift<<pageShift&(tableBase-1)
	switch {
	case p.image.Arch == ARM64:
		return at | armValid | armTable
	case p.image.Arch == X86 && depth == 0:
		return at | x86Present // a PAE page directory pointer has no rights
	}
	return at | x86Present | x86Write | x86User | x86Accessed
}

// entry is the entry of a valid page.
func (p *Process) entry(prot Protection, info mm.PageInfo) uint64 {
	e := uint64(info.Frame) << pageShift
	p.mu.Lock()
	dep := p.dep.on
	p.mu.Unlock()
	if p.image.Arch == ARM64 {
		e |= armValid | armTable | armUser | armShared | armAccess | armNotGlob | armPXN
		if !prot.Writable() || !info.Dirty || prot.copies() {
			e |= armReadOnly // a clean page is made writable at the first store
		}
		if prot.Writable() && !prot.copies() {
			e |= armDBM
		}
		if !prot.Executable() {
			e |= armUXN
		}
		switch {
		case prot&NoCache != 0:
			e |= armDevice
		case prot&WriteCombine != 0:
			e |= armCombine
		}
		return e
	}
	e |= x86Present | x86User | x86Accessed
	if prot.Writable() && !prot.copies() { // a store to a page that is to be copied faults
		e |= x86Write
	}
	if info.Dirty {
		e |= x86Dirty
	}
	if dep && !prot.Executable() {
		e |= x86NX
	}
	if prot&NoCache != 0 {
		e |= x86CacheDisable | x86WriteThrough
	}
	if prot&WriteCombine != 0 {
		e |= x86PAT
	}
	return e
}

// bitNames names the bits of an entry, in the words of the architecture's manual.
func bitNames(arch Arch, e uint64, last bool) (names []string) {
	add := func(bit uint64, name string) {
		if e&bit != 0 {
			names = append(names, name)
		}
	}
	if arch == ARM64 {
		add(armValid, "valid")
		if last {
			add(armTable, "page")
		} else {
			add(armTable, "table")
			return names
		}
		add(armDevice, "device")
		add(armCombine, "noncached")
		add(armUser, "EL0")
		add(armReadOnly, "readonly")
		add(armAccess, "AF")
		add(armNotGlob, "nG")
		add(armDBM, "DBM")
		add(armPXN, "PXN")
		add(armUXN, "UXN")
		return names
	}
	for _, b := range []struct {
		bit  uint64
		name string
	}{
		{x86Present, "P"}, {x86Write, "RW"}, {x86User, "US"}, {x86WriteThrough, "PWT"}, {x86CacheDisable, "PCD"},
		{x86Accessed, "A"}, {x86Dirty, "D"}, {x86PAT, "PAT"}, {x86NX, "NX"},
	} {
		add(b.bit, b.name)
	}
	return names
}

// String is the walk in lines, as the translate command shows it.
func (t Translation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "0x%016x %v\n", t.Address, t.Arch)
	for _, l := range t.Levels {
		fmt.Fprintf(&b, "%-4s [0x%03x] 0x%016x %s\n", l.Name, l.Index, l.Entry, strings.Join(l.Bits, " "))
	}
	if t.Valid {
		fmt.Fprintf(&b, "frame %d physical 0x%x\n", t.Frame, t.Physical)
	} else {
		fmt.Fprintf(&b, "%s\n", t.Why)
	}
	return b.String()
}
