package mm

// Resource is what programs are told of when memory gets short, and when there is plenty again.
type Resource struct {
	Available uint64 // frames that can be had without I/O: Zeroed, Free and Standby
	LowMark   uint64 // memory is low at this and below
	HighMark  uint64 // and plenty at this and above
}

// The low mark is a thirty-second of the frames, but no more than this; plenty is three times as many.
const mostLowMark = 32 << 20 >> PageShift

// Low says whether memory is low (LowMemoryResourceNotification).
func (r Resource) Low() bool { return r.Available <= r.LowMark }

// High says whether there is plenty (HighMemoryResourceNotification).
func (r Resource) High() bool { return r.Available >= r.HighMark }

// Resource is the state of the memory just now.
func (s *System) Resource() Resource {
	s.pfn.Lock()
	defer s.pfn.Unlock()
	return s.resource()
}

// +checklocks:s.pfn.mu
func (s *System) resource() Resource {
	low := min(s.pfn.Frames()/32, mostLowMark)
	return Resource{Available: s.pfn.Available(), LowMark: low, HighMark: 3 * low}
}
