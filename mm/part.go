package mm

import (
	"math/bits"

	"memfs/mm/pfn"
)

// tally is a part's share of the figures that requests change with one part of the PFN lock alone. Each is in cache lines of
// its own.
type tally struct {
	_         [64]byte
	hostPages uint64 // bits set in the leaves of the part's files
	room      uint64 // how many more the part may add before it has to look at the limit
	soft      uint64 // soft faults
	holes     uint64 // reads of holes
	aheadHits uint64 // first touches of pages read ahead
	views     uint64 // views mapped
	_         [64]byte
}

// roomMost is how many pages a part may add at most without a look at the limit.
const roomMost = 1024

// partOf is the part of the PFN lock that a segment's pages belong to. So requests for different files are seldom in each
// other's way, and those for one file take its lock in turns as it is.
func partOf(seg uint32) pfn.Part { return pfn.Part(seg % pfn.Parts) }

// hostPages is how many pages of files the host may hold: bits set in all leaves. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) hostPages() (n uint64) {
	for i := range s.tallies {
		n += s.tallies[i].hostPages
	}
	return n
}

// shareRoom divides what is left to the limit of the host's pages: a part gets its share, and the others keep no more than
// theirs. So together they do not pass the limit unseen. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) shareRoom(t *tally, left uint64) {
	share := min(left/pfn.Parts, roomMost)
	for i := range s.tallies {
		if o := &s.tallies[i]; o.room > share { // seldom: else the line stays with its processor
			o.room = share
		}
	}
	t.room = share
}

// noRoom has every part look at the limit before it adds a page, for less is left than was shared out. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) noRoom() {
	for i := range s.tallies {
		s.tallies[i].room = 0
	}
}

// mapHostPart is mapHost with a part of the PFN lock alone. It is false, and nothing has changed, where a limit has to be
// looked at.
// +checklocksread:s.pfn.mu
func (s *System) mapHostPart(id uint32, l *leaf, mask uint64) bool {
	t := &s.tallies[partOf(l.seg)]
	n := uint64(bits.OnesCount64(mask &^ l.host))
	switch {
	case l.flags&leafPrivate != 0:
		return true
	case l.flags&leafLimited != 0, n > t.room:
		return false
	}
	t.room -= n
	t.hostPages += n
	l.host |= mask
	if l.flags&(leafMapped|leafTrimming) == 0 {
		s.cache.joining.Lock()
		s.joinQueue(id, l)
		s.cache.joining.Unlock()
		t.views++
	}
	return true
}

// passPart is passView as far as one part of the PFN lock suffices: for holes, and pages that have a frame, of a file without a
// working-set limit, whose pages are counted. It says whether those were all; the others are passView's.
// +checklocks:r.g.mu
func (r *reading) passPart(id uint32, p, end uint64, host bool) (all bool) {
	g, s := r.g, r.g.sys
	part := partOf(g.id)
	l, t := s.rec.leaves.At(id), &s.tallies[part]
	var soft uint64
	h := s.pfn.LockPart(part)
	all = l.flags&leafLimited == 0 && (!host || s.mapHostPart(id, l, pageMask(uint(p%ViewPages), uint(end%ViewPages))))
	for ; all && p <= end; p++ {
		at := p - r.first
		if r.set.slices[at] != nil {
			continue
		}
		i := uint(p % ViewPages)
		switch w := s.rec.word(l, i); w.kind() {
		case kindZero:
			if all = !r.demand || !w.isCommitted(); all {
				r.set.slices[at] = s.zeroPage
				t.holes++
			}
		case kindValid, kindTransition:
			var n uint64
			if n, all = g.pinPart(part, l, i, w); all {
				soft += n
				r.set.frames[at] = w.frame()
				r.set.slices[at] = s.pfn.Bytes(w.frame())
			}
		default:
			all = false
		}
	}
	t.soft += soft
	s.pfn.UnlockPart(h)
	if soft > 0 {
		g.faults.soft.Add(soft)
		r.set.Soft += soft
	}
	return all
}

// pinPart is pin with the segment's part of the PFN lock alone. It is false, and nothing has changed, where that does not
// suffice.
// +checklocks:g.mu
// +checklocksread:g.sys.pfn.mu
func (g *Segment) pinPart(part pfn.Part, l *leaf, i uint, w pte) (soft uint64, ok bool) {
	s := g.sys
	if w.kind() == kindTransition && g.private { // a working set is counted
		return 0, false
	}
	made, hit, ok := s.pfn.TouchPart(part, w.frame(), g.rule.Priority)
	if !ok {
		return 0, false
	}
	if made {
		s.rec.set(l, i, validPTE(w.frame()))
		soft = 1
	}
	if hit {
		g.ahead.hit()
		s.tallies[part].aheadHits++
	}
	s.rec.access(l, i)
	return soft, true
}
