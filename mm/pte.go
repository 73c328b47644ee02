package mm

import (
	"fmt"

	"memfs/mm/pfn"
)

// pte is a prototype PTE: one word a page of a segment, saying where the page's bytes are.
//
//	bits 0–2   kind
//	bit  3     committed (only of a zero or shared word; every other kind is committed)
//	bit  4     accessed since it was last looked at (only of a valid or shared word of a process's memory);
//	           lost since it was offered (only of a zero word)
//	valid, transition:  bits 32–63  frame
//	shared:             bits 16–55  owner: the prototype PTE of the file's page, or the combined one, which is valid
//	combined:           bits 16–63  number of the combined page (combine.go)
//	paged, inIO:        bits 3–5    why it left memory, bits 8–15  page file, bits 16–63  slot + 1 (0 = none)
//
// Words change only with the segment's lock and the PFN lock held, except that the PFN lock alone suffices to take the
// frame away from a valid or transition word, and to turn one into the other. So a word is read under the PFN lock. A part of
// that lock, the segment's, stands for it where a transition word becomes valid.
type pte uint64

const (
	kindZero       = iota // never written: zeros
	kindValid             // in a frame, in a working set
	kindTransition        // in a frame, in no working set
	kindPaged             // in a page file only
	kindInIO              // being read from, or written straight to, a page file; colliding faults wait
	kindShared            // of a process's memory only: a file's page, or a combined one, in its working set (NT: a PTE whose PFN is a prototype's)
	kindCombined          // in no working set: shares the bytes of a page of the combined pages' segment
	kindMask       = 7
)

const (
	committed pte = 8
	accessed  pte = 16
	lost      pte = 16
)

func (w pte) kind() int        { return int(w & kindMask) }
func (w pte) frame() pfn.Frame { return pfn.Frame(w >> 32) }
func (w pte) hasFrame() bool   { return w.kind() == kindValid || w.kind() == kindTransition }
func (w pte) isCommitted() bool {
	if k := w.kind(); k != kindZero && k != kindShared {
		return true
	}
	return w&committed != 0
}

// inWorkingSet says, of a word of a process's memory, that the page can be touched without a fault.
func (w pte) inWorkingSet() bool { return w.kind() == kindValid || w.kind() == kindShared }

// sharedPTE maps a file's page, or a combined one. promised says that the process may need a copy of its own, whose space is
// committed.
func sharedPTE(o owner, promised bool) pte {
	w := pte(o)<<ownerShift | kindShared
	if promised {
		w |= committed
	}
	return w
}

const ownerShift = 16

// owner is the prototype PTE that a shared word leads to.
func (w pte) owner() owner { return owner(w >> ownerShift) }

// location is where a store keeps a page: the same bits as in a paged word, 0 = nowhere.
func (w pte) location() location { return location(w &^ 0xff) }

func validPTE(f pfn.Frame) pte      { return pte(f)<<32 | kindValid }
func transitionPTE(f pfn.Frame) pte { return pte(f)<<32 | kindTransition }
func inIOPTE(l location) pte        { return pte(l) | kindInIO }

// combinedPTE shares a combined page.
func combinedPTE(number uint64) pte { return pte(number)<<16 | kindCombined }

// number is the combined page's.
func (w pte) number() uint64 { return uint64(w >> 16) }

// pagedPTE is of a page that is in a store alone, since it left memory for the reason why.
func pagedPTE(l location, why pfn.Departure) pte {
	return pte(l) | pte(why)<<departureShift | kindPaged
}

const (
	departureShift = 3
	departureMask  = 7
)

// departure is why a paged page left memory; a page under I/O keeps it.
func (w pte) departure() pfn.Departure { return pfn.Departure(w >> departureShift & departureMask) }

// as is a paged word as one in I/O, or the other way round: the rest stays.
func (w pte) as(kind pte) pte { return w&^kindMask | kind }

// leaves says whether a page whose PTE was old and is w now has come to have no frame of its own: its bytes are in a store, or
// another page's too.
func (w pte) leaves(old pte) bool {
	switch w.kind() {
	case kindPaged:
		return w != old && (old.kind() != kindInIO || w.location() != old.location()) // else it has only been read
	case kindCombined:
		return w != old
	case kindShared:
		return old.kind() == kindValid
	}
	return false
}

// version is the PTE of a page without a frame of its own, and when a page of its leaf last came to have none: as long as it is
// the same, so are the bytes. The PTE alone does not say it, for a slot that was freed may be the same page's next one.
type version struct {
	pte
	left uint32
}

// version is that of page i of a leaf, of a combined page in a working set as well. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) version(l *leaf, i uint) version { return version{s.plain(s.rec.word(l, i)), l.left} }

// isPagedAt says whether the page is in a store alone, at l.
func (w pte) isPagedAt(l location) bool { return w.kind() == kindPaged && w.location() == l }

// location names a slot of a page file. 0 is none.
type location uint64

func makeLocation(file int, slot uint64) location {
	return location((slot+1)<<16 | uint64(file)<<8)
}
func (l location) file() int    { return int(l >> 8 & 0xff) }
func (l location) slot() uint64 { return uint64(l>>16) - 1 }

func (l location) String() string {
	if l == 0 {
		return "nowhere"
	}
	return fmt.Sprintf("page file %d slot %d", l.file(), l.slot())
}

// owner is what the PFN database knows a prototype PTE by: leaf and index in it.
type owner uint64

func makeOwner(leaf uint32, index uint) owner { return owner(uint64(leaf)<<8 | uint64(index)) }
func (o owner) leaf() uint32                  { return uint32(o >> 8) }
func (o owner) index() uint                   { return uint(o & 0xff) }
