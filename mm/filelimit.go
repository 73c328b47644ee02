package mm

import (
	"cmp"
	"slices"
	"time"

	"memfs/mm/pfn"
)

// A file's working-set limit (Rule.MaxResident) bounds its pages in memory, so that one file does not push out all others: of
// its pages, at most so many are in frames, and the host keeps at most so many. What is too much leaves by the file's own
// oldest views, whatever the rest of the memory does: first out of the host, then out of the frames, written before if it must
// be. The trimmer and the page writer see to it; requests never wait for it, so that a limit is exceeded for a moment.
//
// What processes have of the file in their working sets counts, and stays: they have limits of their own.

// fileLimit is the book of one such file. The PFN lock guards it. It counts what is in the leaves that are marked as limited:
// all of the file's, save while the limit is being set or lifted.
type fileLimit struct {
	most   uint64 // pages
	frames uint64 // pages that are in frames
	valid  uint64 // of those in a working set
	host   uint64 // pages that the host may hold

	views  []mappedView // in the order in which they were mapped; those that have been unmapped since are passed over
	mapped uint64       // views that are mapped

	hand  uint64    // view that evicting goes on from
	again time.Time // before which evicting is of no use: nothing could leave when it was last tried
}

// mappedView is a view on the queue, as long as its leaf has the stamp.
type mappedView struct{ leaf, stamp uint32 }

// LeastResident is the lowest working-set limit of a file, in pages: one view.
const LeastResident = ViewPages

// over says whether pages should leave memory, and can.
func (n *fileLimit) over() bool { return n.frames > n.most && n.frames > n.valid }

// count keeps the numbers of frames when a word changes.
func (n *fileLimit) count(was, is pte) {
	if was.hasFrame() {
		n.frames--
	}
	if is.hasFrame() {
		n.frames++
	}
	if was.kind() == kindValid {
		n.valid--
	}
	if is.kind() == kindValid {
		n.valid++
	}
}

// setLimit bounds the file's pages in memory; 0 does no longer.
func (g *Segment) setLimit(most uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.deleted || most == 0 && !g.limited {
		return
	}
	s := g.sys
	if g.limited && most > 0 {
		s.pfn.Lock()
		n := s.rec.limits[g.id]
		n.most, n.again = most, time.Time{}
		s.pfn.Unlock()
		return
	}
	if g.limited = most > 0; g.limited {
		s.pfn.Lock()
		s.rec.limits[g.id] = &fileLimit{most: most}
		s.pfn.Unlock()
	}
	for key, id := g.nextLeaf(0); id != 0; key, id = g.nextLeaf(key + 1) {
		s.pfn.Lock()
		s.markLimited(id, g.limited)
		s.pfn.Unlock()
	}
	s.pfn.Lock()
	defer s.pfn.Unlock()
	if !g.limited {
		delete(s.rec.limits, g.id)
		return
	}
	slices.SortFunc(s.rec.limits[g.id].views, func(a, b mappedView) int { return cmp.Compare(a.stamp, b.stamp) })
}

// markLimited has a leaf counted, or not. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) markLimited(id uint32, limited bool) {
	l := s.rec.leaves.At(id)
	if !limited {
		l.flags &^= leafLimited
		return
	}
	l.flags |= leafLimited
	n := s.rec.limits[l.seg]
	for _, w := range s.rec.slice(l) {
		n.count(0, w)
	}
	n.host += hostCount(l)
	if l.flags&leafMapped != 0 {
		n.views, n.mapped = append(n.views, mappedView{id, l.stamp}), n.mapped+1
	}
}

// limitOf is the book of a leaf's file, nil if it has no limit. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) limitOf(l *leaf) *fileLimit {
	if l.flags&leafLimited == 0 {
		return nil
	}
	return s.rec.limits[l.seg]
}

// viewMapped notes that a view is on the queue. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) viewMapped(id uint32, l *leaf) {
	n := s.limitOf(l)
	if n == nil {
		return
	}
	if uint64(len(n.views)) > 2*n.mapped+ViewPages {
		n.views = slices.DeleteFunc(n.views, func(v mappedView) bool { return !s.isMapped(v, l.seg) })
	}
	n.views, n.mapped = append(n.views, mappedView{id, l.stamp}), n.mapped+1
}

// viewUnmapped notes that a view is off the queue. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) viewUnmapped(l *leaf) {
	if n := s.limitOf(l); n != nil {
		n.mapped--
	}
}

// isMapped says whether a view is still mapped, and was not anew. The PFN lock is held: it is called from a closure too, which
// the analyser cannot see.
//
// +checklocksignore
func (s *System) isMapped(v mappedView, seg uint32) bool {
	l := s.rec.leaves.At(v.leaf)
	return l.seg == seg && l.flags&leafMapped != 0 && l.stamp == v.stamp
}

// wakeFor wakes the daemons that have work with a file, if it is over its limit. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) wakeFor(n *fileLimit) {
	if n == nil {
		return
	}
	if n.host > n.most {
		s.trimmer.kick()
	}
	if n.over() {
		s.writer.kick()
	}
}

// wakeForLimits is wakeFor for all files.
func (s *System) wakeForLimits() {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	for _, n := range s.rec.limits {
		s.wakeFor(n)
	}
}

// ownTrims is how many invalidations the trimmer does for files' own limits before it looks at what else there is to do.
const ownTrims = 64

// trimOwn trims the oldest views of the files of which the host has more than it may, or of one of them, most times at most:
// programs may map as fast as we unmap. It returns the pages that left, and whether there may be more to do.
func (s *System) trimOwn(only uint32, most int, stop func() bool) (moved uint64, more bool, err error) {
	for range most {
		if stop() {
			return moved, false, nil
		}
		pages, more, err := s.trimOwnOnce(only)
		moved += pages
		if err != nil || !more {
			return moved, false, err
		}
	}
	return moved, true, nil
}

func (s *System) trimOwnOnce(only uint32) (moved uint64, more bool, err error) {
	s.cache.turn <- struct{}{}
	defer func() { <-s.cache.turn }()
	seg, views := s.takeOwn(only)
	if len(views) == 0 {
		return 0, false, nil
	}
	moved, err = s.unmap(s.segment(seg), views, false)
	return moved, true, err
}

// takeOwn takes the oldest views of a file that the host has too much of off the queue, up to trimViews of them if they lie
// next to each other.
func (s *System) takeOwn(only uint32) (seg uint32, views []trimming) {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	if only != 0 {
		return only, s.takeOwnOf(only)
	}
	for seg := range s.rec.limits {
		if views = s.takeOwnOf(seg); len(views) > 0 {
			return seg, views
		}
	}
	return 0, nil
}

// +checklocks:s.pfn.mu
func (s *System) takeOwnOf(seg uint32) (views []trimming) {
	n := s.rec.limits[seg]
	if n == nil {
		return nil
	}
	for left := n.host; left > n.most && len(n.views) > 0 && len(views) < trimViews; n.views = n.views[1:] {
		v := n.views[0]
		if !s.isMapped(v, seg) {
			continue
		}
		l := s.rec.leaves.At(v.leaf)
		if k := len(views); k > 0 && l.base != views[k-1].base+ViewPages {
			break
		}
		left -= min(left, hostCount(l))
		views = append(views, s.beginTrim(v.leaf, l))
	}
	return views
}

// evictOver has pages leave memory of files that have too many in frames. It returns how many did.
func (s *System) evictOver() (moved uint64) {
	var over []uint32
	s.pfn.Lock()
	for seg, n := range s.rec.limits {
		if n.over() && time.Now().After(n.again) {
			over = append(over, seg)
		}
	}
	s.pfn.Unlock()
	slices.Sort(over)
	for _, seg := range over {
		if g := s.segment(seg); g != nil {
			n, _ := g.evict() // an error is the store's, of which the listener is told
			moved += n
		}
	}
	return moved
}

// evict has pages that are in no working set leave memory until the file has no more in frames than it may: those first that a
// store has; then the others are written.
func (g *Segment) evict() (moved uint64, err error) {
	if moved = g.evictClean(); !g.overLimit() {
		return moved, nil
	}
	_, err = g.Flush()
	moved += g.evictClean()
	s := g.sys
	s.pfn.Lock()
	defer s.pfn.Unlock()
	if n := s.rec.limits[g.id]; n != nil && moved == 0 {
		n.again = time.Now().Add(time.Second)
	}
	return moved, err
}

// overLimit says whether pages should leave memory, and can.
func (g *Segment) overLimit() bool {
	g.sys.pfn.Lock()
	defer g.sys.pfn.Unlock()
	n := g.sys.rec.limits[g.id]
	return n != nil && n.over()
}

// atLimit says whether the file has as many pages in frames as it may.
func (g *Segment) atLimit() bool {
	g.sys.pfn.Lock()
	defer g.sys.pfn.Unlock()
	n := g.sys.rec.limits[g.id]
	return n != nil && n.frames >= n.most
}

// evictClean goes round the file's views once at most.
func (g *Segment) evictClean() (moved uint64) {
	s := g.sys
	s.pfn.Lock()
	n := s.rec.limits[g.id]
	if n == nil {
		s.pfn.Unlock()
		return 0
	}
	first := n.hand
	s.pfn.Unlock()
	for key, wrapped := first, false; ; {
		at, evicted, more := g.evictView(key)
		moved += evicted
		switch {
		case more && (!wrapped || at < first):
			key = at + 1
		case !more && !wrapped && first > 0 && g.overLimit():
			key, wrapped = 0, true
		default:
			return moved
		}
	}
}

// evictView takes frames of the first view at or after key away. more is false if there is none, or nothing is left to do.
func (g *Segment) evictView(key uint64) (at, moved uint64, more bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	at, id := g.nextLeaf(key)
	if id == 0 {
		return 0, 0, false
	}
	s := g.sys
	s.pfn.Lock()
	defer s.pfn.Unlock()
	n := s.rec.limits[g.id]
	for _, w := range s.rec.slice(s.rec.leaves.At(id)) {
		if n == nil || !n.over() {
			return at, moved, false
		}
		if w.kind() == kindTransition && s.pfn.Evict(w.frame(), pfn.Limited) {
			moved++
		}
	}
	n.hand = at + 1
	return at, moved, true
}

// Bound has the pages that are too much by the file's working-set limit leave at once. It returns how many left the host's
// cache, and how many memory. It waits for the host and for store I/O: no lock may be held, and no handler of a READ or WRITE
// may call it.
func (g *Segment) Bound() (trimmed, evicted uint64, err error) {
	s := g.sys
	s.pfn.Lock()
	views := 0
	if n := s.rec.limits[g.id]; n != nil {
		views = int(n.mapped) // those that are mapped anew meanwhile are the trimmer's business
	}
	s.pfn.Unlock()
	if trimmed, _, err = s.trimOwn(g.id, views, s.stopping.Load); err != nil {
		return trimmed, 0, err
	}
	evicted, err = g.evict()
	return trimmed, evicted, err
}

// checkLimits compares what files with a limit have with the books.
// +checklocks:s.pfn.mu
func (s *System) checkLimits(c *checking) {
	for seg, n := range s.rec.limits {
		found := c.limited[seg]
		if found == nil {
			found = &fileLimit{}
		}
		if found.frames != n.frames || found.valid != n.valid || found.host != n.host || found.mapped != n.mapped {
			c.bad("section %d, which is limited: %d frames, %d of them valid, %d pages of the host's and %d views; counted %d, %d, %d and %d",
				seg, found.frames, found.valid, found.host, found.mapped, n.frames, n.valid, n.host, n.mapped)
		}
		delete(c.limited, seg)
	}
	for seg, found := range c.limited { // of a deleted file the trimmer may have views still
		if found.frames > 0 {
			c.bad("section %d has limited pages, but no limit", seg)
		}
	}
}

// checkLimited counts what a leaf of a limited file has.
// +checklocks:s.pfn.mu
func (s *System) checkLimited(c *checking, l *leaf) {
	n := c.limited[l.seg]
	if n == nil {
		n = &fileLimit{}
		c.limited[l.seg] = n
	}
	for _, w := range s.rec.slice(l) {
		n.count(0, w)
	}
	n.host += hostCount(l)
	if l.flags&leafMapped != 0 {
		n.mapped++
	}
}
