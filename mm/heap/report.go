package heap

// Report is what a heap holds. Sizes are in bytes.
type Report struct {
	Handle   uint64
	Number   int    // of those the process has made, from 1
	Default  bool   // GetProcessHeap
	Flags    uint32 // HEAP_ flags, those of debugging included
	FrontEnd uint32 // HeapCompatibilityInformation: 0 standard, 2 low-fragmentation

	Segments    int
	Reserved    uint64 // of all segments and large blocks
	Committed   uint64
	Uncommitted uint64

	BusyBlocks  int
	BusyBytes   uint64 // as asked for
	LargeBlocks int    // of the busy blocks, those that are reservations of their own
	LargeBytes  uint64 // as asked for
	FreeBlocks  int    // of the back end and of subsegments
	FreeBytes   uint64
	LargestFree uint64 // the largest block that can be had without committing more

	// Overhead is what is committed and neither busy data nor free: headers, rounding, the heap's own structures.
	Overhead uint64
	// Fragmentation is the share of the back end's free bytes outside its largest free block, 0 to 1.
	Fragmentation float64

	Buckets []Bucket // of the front end, those in use, by block size
}

// Bucket is a size class of the front end.
type Bucket struct {
	BlockSize   uint64 // bytes, header included
	Subsegments int
	Blocks      int
	Busy        int
}

// Report says what a heap holds. Like Walk it is for somebody who looks from outside: no HeapLock keeps it waiting.
func (t *Thread) Report(handle uint64) (r Report, err error) {
	h := t.heaps.find(handle)
	if h == nil {
		return r, win32(errorInvalidHandle)
	}
	err = h.call(t, NoSerialize, func() error {
		r = h.report()
		return nil
	})
	return r, err
}

func (h *object) report() Report {
	r := Report{Handle: h.base, Number: h.number, Default: h == h.heaps.process, Flags: uint32(h.p.flags), FrontEnd: h.p.frontEnd,
		Reserved: h.p.reserved}
	buckets := make([]Bucket, lfhClasses)
	backFree := uint64(0)
	s := h.segmentAt(h.base)
	for more := true; more; {
		r.Segments++
		backFree += h.reportSegment(&s, &r, buckets)
		s, more = h.nextSegment(&s)
	}
	head := h.base + h.l.largeHead
	for node := h.after(head); node != head; node = h.after(node) {
		b := h.largeAt(node)
		r.Uncommitted += b.reserve - b.commit
		r.LargeBlocks++
		r.LargeBytes += b.size
	}
	r.BusyBlocks += r.LargeBlocks
	r.BusyBytes += r.LargeBytes
	r.Committed = r.Reserved - r.Uncommitted
	r.Overhead = r.Committed - r.BusyBytes - r.FreeBytes
	if backFree > 0 {
		r.Fragmentation = 1 - float64(r.LargestFree)/float64(backFree)
	}
	for _, b := range buckets {
		if b.Subsegments > 0 {
			r.Buckets = append(r.Buckets, b)
		}
	}
	return r
}

// reportSegment adds a segment to r, and returns how many bytes of it the back end has free.
func (h *object) reportSegment(s *segment, r *Report, buckets []Bucket) (free uint64) {
	l := h.l
	for b := s.first; ; {
		e := h.header(b)
		if e.is(flagUCR) {
			u := h.ucrAt(b, e)
			if u.addr > s.end() || u.size > s.end()-u.addr {
				h.fail(b, "the end of a committed run")
			}
			r.Uncommitted += u.size
			if b = u.addr + u.size; b == s.end() {
				return free
			}
			continue
		}
		h.checkBlock(s, b, e)
		switch {
		case !e.is(flagBusy):
			r.FreeBlocks++
			free += l.capacity(e.size)
			r.LargestFree = max(r.LargestFree, l.capacity(e.size))
			r.FreeBytes += l.capacity(e.size)
		case !e.is(flagContainer):
			blk := &block{at: b, e: e}
			h.checkTail(blk)
			r.BusyBlocks++
			r.BusyBytes += blk.size(l)
		case b+l.unit != h.p.table:
			h.reportSubsegment(h.subsegmentAt(b+l.unit), r, buckets)
		}
		b += e.size * l.unit
	}
}

func (h *object) reportSubsegment(s *subsegment, r *Report, buckets []Bucket) {
	l := h.l
	k := &buckets[s.class]
	k.BlockSize = s.bytes(l)
	k.Subsegments++
	k.Blocks += int(s.count)
	for i := range s.count {
		b := s.first + i*s.bytes(l)
		e := h.header(b)
		if !e.is(flagBusy | flagLFH) {
			r.FreeBlocks++
			r.FreeBytes += l.capacity(s.units)
			continue
		}
		blk := &block{at: b, e: e, sub: s}
		h.checkTail(blk)
		k.Busy++
		r.BusyBlocks++
		r.BusyBytes += blk.size(l)
	}
}
