package mm

// The balance set: whose working set gives when frames are short.

// balanceSpaces takes pages out of the working sets of processes if frames are short and the page writer has not enough to
// make them from. First give those that are above their maximum, down to that; then all, in proportion to what they have
// above their minimum; then, in distress, in proportion to all that they have, save those whose minimum is hard. It returns
// how many left.
func (s *System) balanceSpaces() (moved uint64) {
	s.pfn.Lock()
	low := s.lowFrames()
	have := s.pfn.Available() + s.pfn.ModifiedCount()
	s.pfn.Unlock()
	if have >= 2*low {
		return 0
	}
	want := 2*low - have
	for _, keep := range [...]func(*Space) uint64{
		func(p *Space) uint64 {
			if soft := p.soft.Load(); soft > 0 {
				return max(soft, p.low.Load())
			}
			return ^uint64(0)
		},
		func(p *Space) uint64 { return p.low.Load() },
		func(p *Space) uint64 {
			if p.firm.Load() {
				return p.low.Load()
			}
			return 0
		},
	} {
		if moved += s.shareTrim(want-moved, keep); moved >= want {
			break
		}
	}
	return moved
}

// shareTrim takes want pages out of working sets, from each in proportion to what it has above what it may keep. It returns
// how many left.
func (s *System) shareTrim(want uint64, keep func(*Space) uint64) (moved uint64) {
	spaces := s.inTurn()
	give := make([]uint64, len(spaces))
	var all uint64
	for i, p := range spaces {
		have := p.Resident()
		give[i] = have - min(have, keep(p))
		all += give[i]
	}
	for i, p := range spaces {
		if give[i] == 0 || moved >= want {
			continue
		}
		// Rounded up, so that small shares come to something; no more than is wanted in all.
		share := (give[i]*want + all - 1) / all
		moved += p.trimSome(min(share, give[i], want-moved))
	}
	return moved
}
