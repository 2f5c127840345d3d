"""Work sent to a cluster elsewhere: as a Ray job, or as a RayJob of Kubernetes."""
