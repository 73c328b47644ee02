package mm

import (
	"errors"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"
)

// systemCache is the working set of the pages that real programs see. The host kernel's page cache of a file is that
// file's mapped views: a page enters when a READ or WRITE shows that the host has it (holes served as zeros included), and
// leaves when the trimmer has invalidated it in the host. It is bounded by pages, and views leave first-in-first-out.
//
// Its fields are guarded by the PFN lock. How many pages there are is in the tallies, for a part of it suffices to add one.
type systemCache struct {
	limit  uint64 // pages: the host's share of the memory
	bounds CacheLimits
	turn   chan struct{} // one trim at a time; never taken by a READ or WRITE

	laundry chan struct{} // one write-back of the trimmer's at a time

	foreign uint64 // pages of processes' memory that the host may hold
	leaving uint64 // pages of views being trimmed just now: the host may still have them
	views   uint64
	head    uint32 // oldest view
	tail    uint32
	stamp   uint32     // of the view that was mapped last
	joining sync.Mutex // held by those who have a part of the PFN lock only, to put a view on the queue

	crowded atomic.Bool // a hint: far was true when last looked at. For requests, which look without the PFN lock
}

// trimViews is how many adjacent views one invalidation covers at most: 4 MiB.
const trimViews = 16

// refusals are ranges whose WRITE was refused and that the host must forget, one span a file.
type refusals struct {
	mu sync.Mutex
	// +checklocks:mu
	spans map[Host]span
}

type span struct{ off, end int64 }

// RefusedRange has the trimmer invalidate a range whose WRITE was refused, so that nobody reads the refused bytes from the
// host's cache. It never blocks.
func (s *System) RefusedRange(h Host, off, n int64) {
	s.n.refusedWrites.Add(1)
	r := span{off, off + n}
	s.refused.mu.Lock()
	if s.refused.spans == nil {
		s.refused.spans = make(map[Host]span)
	}
	if o, ok := s.refused.spans[h]; ok {
		r = span{min(o.off, r.off), max(o.end, r.end)}
	}
	s.refused.spans[h] = r
	s.refused.mu.Unlock()
	s.trimmer.kick()
}

// forgetRefused invalidates the refused ranges.
func (s *System) forgetRefused() {
	s.refused.mu.Lock()
	spans := s.refused.spans
	s.refused.spans = nil
	s.refused.mu.Unlock()
	for h, r := range spans {
		_ = h.Invalidate(r.off, r.end-r.off)
	}
}

// mapHost notes that the host may hold the pages of mask in view l. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) mapHost(id uint32, l *leaf, mask uint64) {
	c, t := &s.cache, &s.tallies[partOf(l.seg)]
	if t.room > 0 && s.mapHostPart(id, l, mask) || l.flags&leafPrivate != 0 {
		return
	}
	s.countHost(l, bits.OnesCount64(mask&^l.host))
	l.host |= mask
	if l.flags&(leafMapped|leafTrimming) == 0 {
		s.enqueue(id, l)
		s.n.viewsMapped.Add(1)
	}
	held, most := s.hostPages()+c.leaving+c.foreign, c.most(true)
	s.shareRoom(t, most-min(held, most))
	if held > most {
		s.trimmer.kick()
		if s.far() {
			c.crowded.Store(true)
		}
	}
	s.wakeFor(s.limitOf(l))
}

// countHost notes that the host may hold n more pages of a view, or fewer. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) countHost(l *leaf, n int) {
	s.tallies[partOf(l.seg)].hostPages += uint64(n)
	if f := s.limitOf(l); f != nil {
		f.host += uint64(n)
	}
}

// hostCount is how many pages of a view the host may hold.
func hostCount(l *leaf) uint64 { return uint64(bits.OnesCount64(l.host)) }

// unmapHost notes that the host has dropped the pages of mask. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) unmapHost(id uint32, l *leaf, mask uint64) {
	if l.flags&leafPrivate != 0 {
		return
	}
	s.countHost(l, -bits.OnesCount64(mask&l.host))
	l.host &^= mask
	if l.host == 0 && l.flags&leafMapped != 0 {
		s.dequeue(id, l)
	}
}

// enqueue puts a view at the young end of the queue. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) enqueue(id uint32, l *leaf) {
	s.joinQueue(id, l)
	s.viewMapped(id, l)
}

// joinQueue is enqueue of a view of a file that has no limit. The PFN lock is held, or the view's part of it and joining.
// +checklocksread:s.pfn.mu
func (s *System) joinQueue(id uint32, l *leaf) {
	c := &s.cache
	l.flags |= leafMapped
	l.prev, l.next = c.tail, 0
	if c.tail != 0 {
		s.rec.leaves.At(c.tail).next = id
	} else {
		c.head = id
	}
	c.tail = id
	c.views++
	c.stamp++
	l.stamp = c.stamp
}

// dequeue takes a view off the queue. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) dequeue(id uint32, l *leaf) {
	c := &s.cache
	l.flags &^= leafMapped
	if l.prev != 0 {
		s.rec.leaves.At(l.prev).next = l.next
	} else {
		c.head = l.next
	}
	if l.next != 0 {
		s.rec.leaves.At(l.next).prev = l.prev
	} else {
		c.tail = l.prev
	}
	l.prev, l.next = 0, 0
	c.views--
	s.viewUnmapped(l)
}

// trimPages takes the pages of mask that are valid, and in no other working set, out of this one: to Standby, or to Modified
// if no store has their bytes. It returns how many. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) trimPages(l *leaf, mask uint64) (n uint64) {
	words := s.rec.slice(l)
	if len(words) < 64 {
		mask &= 1<<len(words) - 1
	}
	for mask != 0 {
		i := lowestBit(&mask)
		if w := words[i]; w.kind() == kindValid && !s.pfn.Locked(w.frame()) && s.pfn.Shares(w.frame()) == 0 {
			s.rec.set(l, i, transitionPTE(w.frame()))
			s.pfn.Trim(w.frame())
			n++
		}
	}
	s.n.pagesTrimmed.Add(n)
	return n
}

// trimming is one view being trimmed.
type trimming struct {
	leaf uint32
	base uint64
	mask uint64 // what the host held when it began
}

// takeOldest takes up to trimViews views that lie next to each other in one file off the old end of the queue, as long as
// keep pages are left.
func (s *System) takeOldest(keep uint64) (seg uint32, views []trimming) {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	left := s.hostPages()
	for id := s.cache.head; id != 0 && len(views) < trimViews; id = s.cache.head {
		l := s.rec.leaves.At(id)
		if n := len(views); n > 0 && (l.seg != seg || l.base != views[n-1].base+ViewPages) {
			break
		}
		pages := uint64(bits.OnesCount64(l.host))
		if left < keep+pages {
			break
		}
		left -= pages
		seg = l.seg
		views = append(views, s.beginTrim(id, l))
	}
	return seg, views
}

// beginTrim takes one view off the queue. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) beginTrim(id uint32, l *leaf) trimming {
	s.dequeue(id, l)
	l.flags |= leafTrimming
	return trimming{leaf: id, base: l.base}
}

// unmap writes back and invalidates views of one file in the host, which have been taken off the queue, and takes their
// pages out of the working set. A page that the host asks for or sends meanwhile stays; with launder, what is dirty is sent
// before and leaves as well. It returns the pages that left.
func (s *System) unmap(g *Segment, views []trimming, launder bool) (moved uint64, err error) {
	if g == nil {
		panic("mm: a mapped view of no segment")
	}
	off := int64(views[0].base) << PageShift
	end := int64(views[len(views)-1].base+ViewPages) << PageShift
	if end < off {
		end = MaxSize
	}
	g.unmapping.Add(1)
	// A write-back that fails costs time only: the invalidation sends what is dirty as well, a page at a time.
	switch {
	case launder:
		_ = g.host.WriteBack(off, end-off)
		s.n.laundered.Add(1)
	case g.laundering() && !s.farOverLimit():
		s.launderBriefly(g.host, off, end-off)
	}

	s.pfn.Lock()
	for i := range views {
		l := s.rec.leaves.At(views[i].leaf)
		views[i].mask = l.host
		n := bits.OnesCount64(l.host)
		s.countHost(l, -n)
		s.cache.leaving += uint64(n)
		l.host = 0
	}
	s.pfn.Unlock()

	err = g.host.Invalidate(off, end-off)
	g.unmapping.Add(-1)
	s.n.invalidations.Add(1)

	returned := 0 // pages that came back meanwhile: most were dirty, and had to be sent one by one
	g.mu.Lock()
	s.pfn.Lock()
	for _, v := range views {
		l := s.rec.leaves.At(v.leaf)
		returned += bits.OnesCount64(l.host & v.mask)
		s.cache.leaving -= uint64(bits.OnesCount64(v.mask))
		if err != nil && !g.deleted {
			// The host may still have them.
			s.countHost(l, bits.OnesCount64(v.mask&^l.host))
			l.host |= v.mask
		}
		moved += s.trimPages(l, v.mask&^l.host)
		l.flags &^= leafTrimming
		if l.host != 0 {
			s.enqueue(v.leaf, l)
		}
		s.wakeFor(s.limitOf(l))
	}
	s.pfn.Unlock()
	if returned > len(views)*dirtyPages {
		g.launder = launderTrims
	}
	for _, v := range views {
		g.dropLeafIfEmpty(v.base >> viewShift)
	}
	g.mu.Unlock()
	g.retire()
	s.n.viewsTrimmed.Add(uint64(len(views)))
	return moved, err
}

// Views are mostly clean when they leave: what streamed through them has long been written back. To have the host write
// back first costs a round trip through the launderer, whose close makes the kernel write the whole file back besides; not
// to do so costs a request a page for those that are dirty. So a file is laundered for a while once a trim has met dirty
// pages.
const (
	dirtyPages   = 4  // returned pages a view that make a file a dirty one
	launderTrims = 16 // trims that are then laundered
)

// laundering says whether this trim has the host write back first.
func (g *Segment) laundering() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.launder == 0 {
		return false
	}
	g.launder--
	return true
}

// launderMost is how long the trimmer waits for a write-back: while it waits, the host fills up.
const launderMost = 20 * time.Millisecond

// launderBriefly has the host write back, but goes on if that takes long or the last one is still under way.
func (s *System) launderBriefly(h Host, off, n int64) {
	select {
	case s.cache.laundry <- struct{}{}:
	default:
		return
	}
	done := make(chan struct{})
	go func() {
		_ = h.WriteBack(off, n)
		<-s.cache.laundry
		close(done)
	}()
	s.n.laundered.Add(1)
	t := time.NewTimer(launderMost)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
}

// trimOldest trims the oldest views, and returns how many views and pages left.
func (s *System) trimOldest(launder bool) (views int, moved uint64, err error) {
	return s.trimDown(0, launder)
}

// trimDown is trimOldest that leaves keep pages at least.
func (s *System) trimDown(keep uint64, launder bool) (views int, moved uint64, err error) {
	s.cache.turn <- struct{}{}
	defer func() { <-s.cache.turn }()
	seg, oldest := s.takeOldest(keep)
	if len(oldest) == 0 {
		return 0, 0, nil
	}
	moved, err = s.unmap(s.segment(seg), oldest, launder)
	return len(oldest), moved, err
}

// trimToLimits trims the oldest views until the system cache's working set is within its limits. It returns the pages that
// left.
func (s *System) trimToLimits(launder bool, stop func() bool) (moved uint64, err error) {
	for !stop() && s.overLimit() {
		n, pages, err := s.trimDown(s.mustKeep(), launder)
		moved += pages
		if err != nil || n == 0 {
			return moved, err
		}
	}
	return moved, nil
}

// mustKeep is how many pages a trim to the limits has to leave: the minimum that was asked for, and what want of frames
// leaves if that is all that there is to trim for.
func (s *System) mustKeep() uint64 {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	if c := &s.cache; s.hostPages()+c.foreign > c.most(s.pfn.Available() < s.lowFrames()) {
		return c.bounds.Min
	}
	return s.cache.least()
}

// overLimit says whether the trimmer has work: the host holds too much, or frames are short and nothing but the working
// set can give any.
func (s *System) overLimit() bool {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	low := s.lowFrames()
	short := s.pfn.Available() < low
	pages := s.hostPages()
	if pages > 0 && pages+s.cache.foreign > s.cache.most(short) {
		return true
	}
	return short && s.pfn.ModifiedCount() < low && pages > s.cache.least()
}

// lowFrames is the low mark of available frames. The PFN lock is held.
// +checklocks:s.pfn.mu
func (s *System) lowFrames() uint64 { return lowFrames(s.budget.Frames) }

func lowFrames(frames uint64) uint64 { return min(max(32, frames/32), frames/4) }

// trimLoop is the trimmer.
func (s *System) trimLoop(t *thread) {
	for {
		select {
		case <-t.quit:
			return
		case <-t.wake:
		}
		s.forgetRefused()
		s.balanceSpaces()
		_, more, err := s.trimOwn(0, ownTrims, t.stopped)
		if more {
			t.kick()
		}
		_, err2 := s.trimToLimits(false, t.stopped)
		if err != nil || err2 != nil {
			time.Sleep(10 * time.Millisecond) // the host is in trouble, or going away
		}
	}
}

// Trim unmaps every view of the segment in the host. It returns the pages that left the working set. It waits for the
// host: no lock may be held, and no handler of a READ or WRITE may call it.
func (g *Segment) Trim() (moved uint64, err error) {
	return g.trimViews(0, MaxSize>>PageShift>>viewShift)
}

// trimViews is Trim for the views first..last.
func (g *Segment) trimViews(first, last uint64) (moved uint64, err error) {
	s := g.sys
	s.cache.turn <- struct{}{}
	defer func() { <-s.cache.turn }()
	key := first
	for {
		views, next := g.takeViews(key, last)
		if len(views) == 0 {
			return moved, err
		}
		n, e := s.unmap(g, views, true)
		moved += n
		err = errors.Join(err, e)
		key = next
	}
}

// takeViews takes adjacent mapped views among key..last off the queue.
func (g *Segment) takeViews(key, last uint64) (views []trimming, next uint64) {
	s := g.sys
	g.mu.Lock()
	defer g.mu.Unlock()
	s.pfn.Lock()
	defer s.pfn.Unlock()
	for len(views) < trimViews {
		k, id := g.nextLeaf(key)
		if id == 0 || k > last {
			break
		}
		l := s.rec.leaves.At(id)
		if n := len(views); n > 0 && l.base != views[n-1].base+ViewPages {
			break
		}
		key = k + 1
		if l.flags&leafMapped != 0 {
			views = append(views, s.beginTrim(id, l))
		} else if len(views) > 0 {
			break
		}
	}
	return views, key
}

// Forgotten notes that the host has dropped the file from its memory: it holds none of its pages.
func (g *Segment) Forgotten() {
	s := g.sys
	for key := uint64(0); ; {
		g.mu.Lock()
		k, id := g.nextLeaf(key)
		if id == 0 {
			g.mu.Unlock()
			return
		}
		s.pfn.Lock()
		l := s.rec.leaves.At(id)
		mask := l.host
		s.unmapHost(id, l, mask)
		s.trimPages(l, mask)
		s.pfn.Unlock()
		g.dropLeafIfEmpty(k)
		g.mu.Unlock()
		key = k + 1
	}
}

// TrimAll empties the system cache's working set: every view is unmapped in the host. It returns the pages that left.
func (s *System) TrimAll() (moved uint64, err error) {
	s.pfn.Lock()
	views := s.cache.views
	s.pfn.Unlock()
	// Views that are mapped anew meanwhile are not chased: programs may map as fast as we unmap.
	for done := uint64(0); done < views; {
		n, pages, e := s.trimOldest(true)
		moved += pages
		err = errors.Join(err, e)
		if n == 0 {
			break
		}
		done += uint64(n)
	}
	return moved, err
}
