package process

import (
	"strconv"
	"strings"
)

// PageSize is the unit of protection in bytes, and Granularity that of reservation.
const (
	PageSize    = 0x1000
	Granularity = 0x10000
	// LargePage is what GetLargePageMinimum says, in bytes.
	LargePage = 0x200000

	pageShift = 12
	slotPages = Granularity / PageSize
)

// Protection is a PAGE_ constant with its modifiers.
type Protection uint32

// The PAGE_ constants (winnt.h).
const (
	NoAccess         Protection = 0x01
	ReadOnly         Protection = 0x02
	ReadWrite        Protection = 0x04
	WriteCopy        Protection = 0x08
	Execute          Protection = 0x10
	ExecuteRead      Protection = 0x20
	ExecuteReadWrite Protection = 0x40
	ExecuteWriteCopy Protection = 0x80

	Guard        Protection = 0x100
	NoCache      Protection = 0x200
	WriteCombine Protection = 0x400

	baseMask  = 0xff
	cacheMask = NoCache | WriteCombine
)

// protectionNames are the PAGE_ constants in the order in which they are written.
var protectionNames = []struct {
	bit  Protection
	name string
}{
	{NoAccess, "PAGE_NOACCESS"}, {ReadOnly, "PAGE_READONLY"}, {ReadWrite, "PAGE_READWRITE"}, {WriteCopy, "PAGE_WRITECOPY"},
	{Execute, "PAGE_EXECUTE"}, {ExecuteRead, "PAGE_EXECUTE_READ"}, {ExecuteReadWrite, "PAGE_EXECUTE_READWRITE"},
	{ExecuteWriteCopy, "PAGE_EXECUTE_WRITECOPY"},
	{Guard, "PAGE_GUARD"}, {NoCache, "PAGE_NOCACHE"}, {WriteCombine, "PAGE_WRITECOMBINE"},
}

// String is the constant's name, or names joined with |; 0 is "0".
func (p Protection) String() string {
	var s []string
	for _, n := range protectionNames {
		if p&n.bit != 0 {
			s = append(s, n.name)
			p &^= n.bit
		}
	}
	if p != 0 || len(s) == 0 {
		s = append(s, number(uint64(p)))
	}
	return strings.Join(s, "|")
}

// ParseProtection is the inverse of String; a number will do.
func ParseProtection(s string) (p Protection, ok bool) {
	if n, err := strconv.ParseUint(s, 0, 32); err == nil {
		p = Protection(n)
	} else {
		for word := range strings.SplitSeq(s, "|") {
			bit := Protection(0)
			for _, n := range protectionNames {
				if n.name == word {
					bit = n.bit
				}
			}
			if bit == 0 {
				return 0, false
			}
			p |= bit
		}
	}
	base := p.Base()
	if base == WriteCopy || base == ExecuteWriteCopy {
		base = ReadWrite // as far as what goes with what is concerned
	}
	return p, (p&^baseMask | base).valid()
}

func number(n uint64) string {
	if n == 0 {
		return "0"
	}
	return "0x" + strconv.FormatUint(n, 16)
}

// Base is the protection without its modifiers.
func (p Protection) Base() Protection { return p & baseMask }

// The MEM_ constants of VirtualAlloc and VirtualFree.
const (
	MemCommit             = 0x1000
	MemReserve            = 0x2000
	MemReplacePlaceholder = 0x4000
	MemReservePlaceholder = 0x40000
	MemReset              = 0x80000
	MemTopDown            = 0x100000
	MemWriteWatch         = 0x200000
	MemPhysical           = 0x400000
	MemResetUndo          = 0x1000000
	MemLargePages         = 0x20000000

	MemCoalescePlaceholders = 0x1
	MemPreservePlaceholder  = 0x2
	MemDecommit             = 0x4000
	MemRelease              = 0x8000
)

// State is what a page of an address space is.
type State uint32

// The states that VirtualQuery reports.
const (
	StateCommit  State = 0x1000
	StateReserve State = 0x2000
	StateFree    State = 0x10000
)

func (s State) String() string {
	switch s {
	case StateCommit:
		return "MEM_COMMIT"
	case StateReserve:
		return "MEM_RESERVE"
	case StateFree:
		return "MEM_FREE"
	}
	return number(uint64(s))
}

// Type is what is behind an allocation.
type Type uint32

// The types that VirtualQuery reports; 0 is free memory's.
const (
	TypePrivate Type = 0x20000
	TypeMapped  Type = 0x40000
	TypeImage   Type = 0x1000000
)

func (t Type) String() string {
	switch t {
	case TypePrivate:
		return "MEM_PRIVATE"
	case TypeMapped:
		return "MEM_MAPPED"
	case TypeImage:
		return "MEM_IMAGE"
	}
	return number(uint64(t))
}

// Arch is a processor architecture.
type Arch uint8

// The architectures that a process can be of.
const (
	X64 Arch = iota
	X86
	ARM64
)

// String is the name that options and status files use.
func (a Arch) String() string { return [...]string{"x64", "x86", "arm64"}[a] }

// ParseArch is the inverse of String.
func ParseArch(s string) (Arch, bool) {
	for _, a := range []Arch{X64, X86, ARM64} {
		if a.String() == s {
			return a, true
		}
	}
	return 0, false
}

// Pointer is the size of a pointer in bytes.
func (a Arch) Pointer() int {
	if a == X86 {
		return 4
	}
	return 8
}
